from pathlib import Path

import pytest
import torch
from parity import Case, check_case

SHIPPED = Path(__file__).parents[2] / 'data' / 'parity' / 'deformable_detr'


@pytest.fixture
def core():
    return Case.read(SHIPPED / 'msda_core_two_of_odd_sizes.json')


@pytest.fixture
def module():
    return Case.read(SHIPPED / 'msda_module_two_of_odd_sizes.json')


def sampled(value, sizes, locations, weights):
    """Naive operator: the sum of the paper, corner by corner."""
    batch, queries, heads, _, points, _ = locations.shape
    out = value.new_zeros(batch, queries, heads, value.shape[-1])
    start = 0
    for level, (height, width) in enumerate(sizes):
        cells = value[:, start : start + height * width]
        start += height * width
        for b, q, h, k in torch.cartesian_prod(
            *map(torch.arange, (batch, queries, heads, points))
        ):
            x, y = locations[b, q, h, level, k] * torch.tensor((width, height)) - 0.5
            for column in (x.floor(), x.floor() + 1):
                for row in (y.floor(), y.floor() + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                        cell = int(row) * width + int(column)
                        share = share * weights[b, q, h, level, k]
                        out[b, q, h] += share * cells[b, cell, h]
    return out.flatten(2)


def test_other_sizes_of_the_operator_equal_the_naive_sum():
    sizes, heads, queries, points = ((3, 5), (1, 4), (2, 1), (1, 1), (4, 2)), 2, 4, 3
    num_cells = sum(h * w for h, w in sizes)
    value = torch.randn(3, num_cells, heads, 6, dtype=torch.double)
    shape = (3, queries, heads, len(sizes), points)
    locations = torch.rand(*shape, 2).double() * 1.4 - 0.2
    weights = torch.rand(shape).double()
    output = sampled(value, sizes, locations, weights)
    tensors = {
        'case0.in.value': value,
        'case0.in.spatial_shapes': torch.tensor(sizes),
        'case0.in.sampling_locations': locations,
        'case0.in.attention_weights': weights,
        'case0.out.output_fp64': output,
    }
    tolerance = dict(fp32_atol=1e-5, fp32_rtol=1e-5)
    info = dict(args=dict(cases=[dict(queries=queries)]), tolerance=tolerance)
    case = Case('msda_core_other', 'deformable_detr', info, tensors)

    verdict = check_case(case)

    assert verdict.status == 'passed', verdict


def test_wrong_weights_of_the_module_fail(module):
    module.tensors['case1.state.value_proj.weight'][0, 0] += 0.1

    assert check_case(module).status == 'failed'


def test_a_missing_weight_of_the_module_fails(module):
    del module.tensors['case0.state.output_proj.bias']

    verdict = check_case(module)

    assert verdict.status == 'failed'
    assert 'output_proj.bias' in verdict.detail


@pytest.mark.parametrize('leaf', ['value', 'locations', 'weights'])
def test_a_wrong_gradient_of_the_operator_fails(core, leaf):
    core.tensors[f'case1.grad.{leaf}_fp64'][:, -1] += 1e-6

    verdict = check_case(core)

    assert (verdict.status, verdict.detail) == ('failed', f'case1.grad.{leaf}_fp64')


def test_gradients_of_locations_on_cell_borders_are_not_compared(core):
    core.tensors['case0.grad.locations_fp64'][:, :2] += 1

    assert check_case(core).status == 'passed'


def test_an_unknown_kind_or_argument_is_unsupported(core, module):
    module.info['args']['cases'][0]['value_proj_ratio'] = 0.5
    other = Case('msda_decoder', core.family, core.info, core.tensors)

    assert check_case(other).status == 'unsupported'
    verdict = check_case(module)
    assert verdict.status == 'unsupported'
    assert "unknown arguments ['value_proj_ratio']" in verdict.detail


def test_the_module_may_have_the_batch_second(module):
    for i, arguments in enumerate(module.info['args']['cases']):
        arguments['batch_first'] = False
        for name in ('in.query', 'in.query_pos', 'in.value', 'out.output_fp64'):
            key = f'case{i}.{name}'
            if key in module.tensors:
                module.tensors[key] = module.tensors[key].transpose(0, 1)
        del module.tensors[f'case{i}.out.output_fp32']

    assert check_case(module).status == 'passed'
