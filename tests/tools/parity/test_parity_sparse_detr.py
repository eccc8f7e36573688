"""Cases of the whole model with other arguments, and outputs of mmsparse itself.

They show that cases with any arguments run, that everything stored is compared, and
that differences are found.
"""

import pytest
import torch
from deformable_keys import official_key
from parity import Case, check_case
from parity.sparse_detr import CASE_TYPES, compare
from parity.sparse_detr_models import build_detector

ARGUMENTS = dict(
    embed_dim=16,
    num_heads=2,
    feedforward_dim=24,
    enc_layers=2,
    dec_layers=2,
    num_feature_levels=4,
    num_points=2,
    num_queries=7,
    num_classes=3,
    in_channels=[4, 6, 8],
    eff_query_init=True,
    group_norm_groups=4,
    position_embedding=dict(
        num_pos_feats=8, temperature=10000, normalize=True, offset=-0.5
    ),
    rho=0.3,
    padded_image=[72, 104],
    image_sizes=[[72, 104], [48, 64]],
)
SHAPES = {
    'as stored': {},
    '3 levels': dict(num_feature_levels=3),
    '5 levels': dict(num_feature_levels=5),
    '1 map': dict(num_feature_levels=2, in_channels=[5]),
    'batch 3': dict(image_sizes=[[72, 104], [48, 64], [17, 90]]),
    'batch 1': dict(image_sizes=[[72, 104]]),
    '3 layers, 1 layer': dict(enc_layers=3, dec_layers=1),
    '1 layer, 3 layers': dict(enc_layers=1, dec_layers=3),
    'width 24': dict(embed_dim=24),
    'ratio 0.6': dict(rho=0.6),
    "Deformable DETR's queries": dict(
        eff_query_init=False, eff_specific_head=False, use_enc_aux_loss=False
    ),
}
TOLERANCE = dict(fp32_atol=1e-4, fp32_rtol=1e-4, grad_fp32_atol=1e-4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(kind, **changes):
    """Return a case that stores the outputs of mmsparse, with random weights."""
    arguments = {**ARGUMENTS, **changes}
    detector = build_detector(arguments)
    channels, (height, width) = arguments['in_channels'], arguments['padded_image']
    state = {
        f'state.{official_key(name, len(channels))}': 0.3 * torch.randn_like(x)
        + ('norm' in name)
        for name, x in detector.state_dict().items()
    }
    given = {
        f'in.feat{i}': torch.randn(
            len(arguments['image_sizes']), c, -(-height // s), -(-width // s)
        )
        for i, (c, s) in enumerate(zip(channels, (8, 16, 32), strict=False))
    }
    given['in.target_sizes'] = 10 * torch.tensor(arguments['image_sizes'])
    for i in range(len(arguments['image_sizes'])):
        given[f'in.labels{i}'] = torch.randint(3, (2 - i,))  # a third has none
        given[f'in.boxes{i}'] = 0.3 + 0.3 * torch.rand(2 - i, 4)
    names = [name.removeprefix('state.') for name in state]
    info = dict(
        kind=kind, args=arguments, tolerance=TOLERANCE, grad_norm_names=names[:3]
    )
    empty = {f'grad.{name}': torch.zeros(0) for name in [*state, 'feat0']}
    case = Case('x', 'sparse_detr', info, {**given, **state, **empty})
    case.tensors['out.topk_inds'] = kept_tokens(case)
    actual = CASE_TYPES[kind](case)
    own = {k: x.detach() for k, x in actual.items() if k.startswith('out.')}
    stored = {k: x for k, x in actual.items() if k in empty}
    return Case('x', 'sparse_detr', info, {**given, **state, **own, **stored})


def kept_tokens(case):
    """Find the order in which mmsparse keeps tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('parity.sparse_detr_models.order_rows', lambda rows, wanted: rows)
        patch.setattr('parity.sparse_detr_models._predictions', lambda *_: {})
        patch.setitem(case.info, 'kind', 'model_micro')
        return CASE_TYPES['model_micro'](case)['out.topk_inds']


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_cases_with_other_arguments_are_compared(shape):
    verdict = check_case(make_case('model_micro', **shape))

    assert verdict.status == 'passed', verdict


@pytest.mark.parametrize(
    'name', [*('5 levels', 'batch 3', '1 layer, 3 layers'), "Deformable DETR's queries"]
)
def test_training_steps_with_other_arguments_are_compared(name):
    verdict = check_case(make_case('train_losses', **SHAPES[name]))

    assert verdict.status == 'passed', verdict


@pytest.mark.parametrize('kind', ['model_micro', 'train_losses'])
def test_every_output_is_compared(kind):
    case = make_case(kind)

    names = {comparison.name for comparison in compare(case)}

    assert names == {x for x in case.tensors if x.startswith(('out.', 'grad.'))}
    assert len(names) >= 25


@pytest.mark.parametrize('name', ['out.dam', 'out.det_boxes', 'grad.feat0'])
def test_a_difference_fails(name):
    case = make_case('train_losses' if name.startswith('grad') else 'model_micro')
    case.tensors[name] = case.tensors[name] + 1

    verdict = check_case(case)

    assert (verdict.status, verdict.detail) == ('failed', name)


def test_other_weights_fail():
    case = make_case('model_micro')
    case.tensors['state.transformer.enc_mask_predictor.layer2.0.bias'] += 0.5

    assert check_case(case).status == 'failed'


@pytest.mark.parametrize('changes', [dict(two_stage=False), dict(rho=0)], ids=str)
def test_other_detectors_are_unsupported(changes):
    case = make_case('model_micro')
    case.info['args'].update(changes)

    assert check_case(case).status == 'unsupported'


def test_an_unknown_kind_is_unsupported():
    verdict = check_case(Case('x', 'sparse_detr', dict(kind='other', args={}), {}))

    assert verdict.status == 'unsupported'
    assert "'score_path'" in verdict.detail
