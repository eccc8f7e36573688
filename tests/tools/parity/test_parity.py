from pathlib import Path

import pytest
import torch
from parity import Case, Comparison, check_case, find_cases
from parity.check import FAMILIES

SHIPPED = Path(__file__).parents[2] / 'data' / 'parity'
ALL = Path(__file__).parents[4] / 'shared' / 'parity'
FOLDERS = [folder for folder in (SHIPPED, ALL) if folder.is_dir()]


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, as for the files; with more even the official code differs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def case():
    return Case.read(SHIPPED / 'biformer' / 'bra_legacy_nonsquare.json')


@pytest.mark.parametrize('path', find_cases(FOLDERS), ids=lambda path: path.stem)
def test_outputs_equal_those_of_the_official_code(path):
    case = Case.read(path)

    verdict = check_case(case)

    unsupported = case.family not in FAMILIES
    assert verdict.status == ('unsupported' if unsupported else 'passed'), verdict


def test_wrong_weights_fail(case):
    case.tensors['state.wo.weight'][0, 0] += 0.1

    assert check_case(case).status == 'failed'


def test_a_wrong_gradient_fails(case):
    case.tensors['grad.state.wo.bias'][0] += 1.0

    verdict = check_case(case)

    assert (verdict.status, verdict.detail) == ('failed', 'grad.proj.bias')


def test_an_unexpected_weight_fails(case):
    case.tensors['state.extra.weight'] = torch.zeros(1)

    verdict = check_case(case)

    assert verdict.status == 'failed'
    assert 'extra.weight' in verdict.detail


def test_arguments_without_a_counterpart_are_unsupported(case):
    case.info['constructor']['kv_downsample_mode'] = 'fracpool'

    verdict = check_case(case)

    assert verdict.status == 'unsupported'
    assert verdict.detail == "kv_downsample_mode='fracpool'"


@pytest.mark.parametrize(
    'arguments',
    [
        dict(soft_routing=True),
        dict(soft_routing=True, diff_routing=True),
        dict(qk_scale=1.0),
        dict(kv_downsample_mode='maxpool', kv_downsample_ratio=2),
    ],
    ids=lambda arguments: '-'.join(arguments),
)
def test_other_arguments_give_other_outputs(case, arguments):
    case.info['constructor'].update(arguments)

    verdict = check_case(case)

    assert verdict.status == 'failed'
    assert verdict.error > 1


def test_unknown_arguments_are_unsupported(case):
    case.info['constructor']['sparsity'] = 2

    verdict = check_case(case)

    assert verdict.status == 'unsupported'
    assert "unknown: ['sparsity']" in verdict.detail


@pytest.mark.parametrize(
    ('actual', 'expected', 'error'),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], 0.5),
        ([float('nan'), 2.0], [1.0, 2.0], float('inf')),
        ([float('nan'), 2.0], [float('nan'), 2.0], 0.0),
        ([float('inf'), 2.0], [float('inf'), 2.0], 0.0),
        ([float('inf'), 2.0], [1.0, 2.0], float('inf')),
        ([1.0], [1.0, 2.0], float('inf')),
        ([], [], 0.0),
    ],
)
def test_the_error_is_the_largest_difference_relative_to_its_tolerance(
    actual, expected, error
):
    comparison = Comparison(
        'x', torch.tensor(actual), torch.tensor(expected), atol=0.2, rtol=0.1
    )

    assert comparison.error() == pytest.approx(error)


def test_sets_of_indices_may_have_any_order():
    a, b = torch.tensor([[3, 1, 2]]), torch.tensor([[1, 2, 3]])

    assert Comparison('routes', a, b, as_sets=True).error() == 0
    assert Comparison('routes', a, b + 1, as_sets=True).error() == float('inf')


def test_a_folder_without_cases_raises_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='no case'):
        find_cases([tmp_path])
