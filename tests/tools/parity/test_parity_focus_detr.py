"""Cases with other arguments than the stored ones and outputs of mmsparse itself.

They show that cases with any arguments run, that everything stored is compared, and
that differences are found.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detrex import detrex_key
from parity import Case, check_case
from parity.focus_detr import CASE_TYPES
from parity.focus_detr_models import build_detector

MODEL = dict(
    embed_dim=16,
    num_heads=2,
    feedforward_dim=24,
    enc_layers=2,
    dec_layers=2,
    num_layers=2,
    num_feature_levels=4,
    num_points=2,
    num_queries=7,
    num_classes=3,
    focus_rho=0.5,
    cascade_set=[1.0, 0.8, 0.6, 0.6, 0.4, 0.2],
    topk_sa=5,
    select=9,
    neck=dict(in_channels=[4, 6, 8], kernel_size=1, groups=4, conv_bias=True),
    padded_image=[72, 104],
    image_sizes=[[72, 104], [48, 64]],
    position_embedding=dict(
        num_pos_feats=8, temperature=10000, normalize=True, offset=-0.5
    ),
)
FOUR_STAGES = dict(MODEL['neck'], in_channels=[4, 4, 6, 8])
SHAPES = {
    'as stored': {},
    '3 levels': dict(num_feature_levels=3),
    '5 levels': dict(num_feature_levels=5),
    '5 levels, 4 stages': dict(num_feature_levels=5, neck=FOUR_STAGES),
    'batch 3': dict(image_sizes=[[72, 104], [48, 64], [17, 90]]),
    'batch 1': dict(image_sizes=[[72, 104]]),
    '6 layers': dict(enc_layers=6, dec_layers=6, num_layers=6),
    'width 36': dict(
        embed_dim=36,
        position_embedding=dict(MODEL['position_embedding'], num_pos_feats=18),
    ),
    'ratio 0.3': dict(focus_rho=0.3),
}
LOSSES = ('loss_class', 'loss_bbox', 'loss_giou')
TOLERANCE = dict(fp32_atol=1e-4, fp32_rtol=1e-4, grad_fp32_atol=1e-4)
MODEL_OUTPUTS = (
    *('masked_logit', 'focus_token_nums', 'memory', 'twostage_inds', 'twostage_class'),
    *('twostage_boxes', 'init_reference', 'hidden_states', 'inter_references'),
    *('all_logits', 'all_boxes', 'pred_logits', 'pred_boxes', 'det_scores'),
    *('det_labels', 'det_boxes', 'foreground_logit', 'inds0', 'inds1', 'neck2', 'pos0'),
)
SELECTOR_OUTPUTS = (
    *('enc_memory', 'proposals', 'valid_token_nums', 'focus_token_nums', 'k_per_layer'),
    *('level_logit2', 'foreground_logit', 'masked_logit', 'inds5', 'spatial_shapes'),
    *('level_start_index', 'valid_ratios', 'reference_points'),
)


def official_state(module):
    """Return random weights under the names of detrex."""
    return {
        f'state.{detrex_key(name)}': 0.3 * torch.randn_like(x) + ('norm' in name)
        for name, x in module.state_dict().items()
    }


def feature_maps(arguments, channels, finest):
    height, width = arguments['padded_image']
    strides = [finest * 2**i for i in range(len(channels))]
    return [
        torch.randn(len(arguments['image_sizes']), c, -(-height // s), -(-width // s))
        for c, s in zip(channels, strides, strict=True)
    ]


def with_outputs(name, arguments, tensors, outputs):
    """Return a case that stores the outputs of mmsparse."""
    empty = {f'out.{output}': torch.zeros(0) for output in outputs}
    case = Case(
        name,
        'focus_detr',
        dict(args=arguments, tolerance=TOLERANCE),
        {**tensors, **empty},
    )
    actual = next(run for kind, run in CASE_TYPES.items() if name.startswith(kind))(
        case
    )
    return Case(
        name,
        case.family,
        case.info,
        {**tensors, **{f'out.{x}': actual[f'out.{x}'].detach() for x in outputs}},
    )


def model_case(arguments):
    channels = arguments['neck']['in_channels']
    features = feature_maps(arguments, channels, finest=4 if len(channels) == 4 else 8)
    features = {
        f'in.backbone.res{6 - len(features) + i}': x for i, x in enumerate(features)
    }
    state = official_state(build_detector(arguments))
    return with_outputs(
        'model_micro_x', arguments, {**features, **state}, MODEL_OUTPUTS
    )


def selector_case(arguments):
    levels = arguments['num_feature_levels']
    features = feature_maps(arguments, [arguments['embed_dim']] * levels, finest=8)
    detector = build_detector(arguments)
    state = {
        name: x
        for name, x in official_state(detector).items()
        if 'transformer.enc_' in name or name.endswith(('alpha', 'level_embeds'))
    }
    names = ('embed_dim', 'num_feature_levels', 'focus_rho', 'cascade_set')
    names += ('padded_image', 'image_sizes', 'position_embedding')
    return with_outputs(
        'score_path_x',
        {name: arguments[name] for name in names},
        {**{f'in.feat{i}': x for i, x in enumerate(features)}, **state},
        SELECTOR_OUTPUTS,
    )


CASES = {'model': model_case, 'selector': selector_case}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('make', CASES.values(), ids=CASES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_cases_with_other_arguments_are_compared(make, shape):
    case = make({**MODEL, **shape})

    verdict = check_case(case)

    assert verdict.status == 'passed', verdict


@pytest.mark.parametrize('make', CASES.values(), ids=CASES)
def test_every_output_is_compared(make):
    case = make(MODEL)

    for name in [name for name in case.tensors if name.startswith('out.')]:
        right = case.tensors[name]
        wrong = right.flatten().clone()
        wrong[0] = 0 if wrong[0] else 1
        case.tensors[name] = wrong.view(right.shape)
        verdict = check_case(case)
        case.tensors[name] = right
        assert (verdict.status, verdict.detail) == ('failed', name)


@pytest.mark.parametrize('make', CASES.values(), ids=CASES)
def test_an_unexpected_weight_fails(make):
    case = make(MODEL)
    case.tensors['state.transformer.beta'] = torch.zeros(3)

    verdict = check_case(case)

    assert verdict.status == 'failed'
    assert 'transformer.beta' in verdict.detail


def test_other_weights_fail():
    case = model_case(MODEL)
    case.tensors['state.transformer.enc_mask_predictor.layer2.0.bias'] += 0.5

    assert check_case(case).status == 'failed'


def test_a_foreground_loss_with_images_without_boxes_is_compared():
    sizes = torch.tensor([[9, 13], [5, 7], [3, 4]])
    arguments = dict(
        strides=[8, 16, 32],
        limit_range=[[-1, 40], [40, 90], [90, 999999]],
        alpha=0.3,
        gamma=1.5,
        loss_weight=2.0,
    )
    boxes = torch.full((3, 2, 4), -1.0)
    boxes[0] = torch.tensor([[3.0, 4, 60, 70], [20, 20, 30, 40]])
    tensors = {
        'in.pred_logit': torch.randn(3, 9 * 13 + 5 * 7 + 3 * 4, 1),
        'in.padded_boxes': boxes,
        'in.level_shapes': sizes,
    }
    outputs = ('targets', 'num_pos', 'num_pos_per_level', 'loss_per_image', 'loss')

    case = with_outputs('foreground_loss_x', arguments, tensors, outputs)

    assert case.tensors['out.num_pos'][0] > 0
    assert case.tensors['out.num_pos'].tolist()[1:] == [0, 0]
    assert check_case(case).status == 'passed'


def test_losses_of_many_layers_and_an_image_without_boxes_are_compared():
    layers, sizes = 6, [[72, 104], [48, 64], [17, 90]]
    weights = dict(loss_class=1.0, loss_bbox=4.0, loss_giou=3.0)
    for call in ('enc', *range(layers - 1)):
        weights |= {f'{loss}_{call}': weights[loss] for loss in LOSSES}
    arguments = dict(
        num_classes=3,
        strides=[8, 16],
        limit_range=[[-1, 64], [64, 999999]],
        weights=dict(weights, select_loss=1.5),
        matcher=dict(
            cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, alpha=0.25, gamma=2.0
        ),
        focal=dict(alpha=0.25, gamma=2.0),
    )
    tensors = {
        'in.all_logits': torch.randn(layers, 3, 8, 3),
        'in.all_boxes': 0.1 + 0.3 * torch.rand(layers, 3, 8, 4),
        'in.enc_logits': torch.randn(3, 8, 3),
        'in.enc_boxes': 0.1 + 0.3 * torch.rand(3, 8, 4),
        'in.foreground_logit': torch.randn(3, 9 * 13 + 5 * 7, 1),
        'in.level_shapes': torch.tensor([[9, 13], [5, 7]]),
        'in.image_sizes': torch.tensor(sizes),
    }
    for i, count in enumerate((4, 0, 1)):
        tensors[f'in.labels{i}'] = torch.randint(3, (count,))
        tensors[f'in.boxes{i}'] = 0.3 + 0.3 * torch.rand(count, 4)
    outputs = [f'weighted.{name}' for name in arguments['weights']]
    outputs += [f'match{call}.{i}' for call in range(layers + 1) for i in range(3)]

    case = with_outputs('criterion_no_dn_x', arguments, tensors, outputs)

    shapes = [tuple(case.tensors[f'out.match0.{i}'].shape) for i in range(3)]
    assert shapes == [(2, 4), (2, 0), (2, 1)]
    assert check_case(case).status == 'passed'


def test_cases_of_the_operator_may_be_stored_with_the_family():
    folder = Path(__file__).parents[2] / 'data' / 'parity' / 'deformable_detr'
    case = Case.read(folder / 'msda_core_two_of_odd_sizes.json')

    verdict = check_case(replace(case, family='focus_detr'))

    assert verdict.status == 'passed', verdict


def test_an_unknown_kind_is_unsupported():
    verdict = check_case(Case('something', 'focus_detr', dict(args={}), {}))

    assert verdict.status == 'unsupported'
    assert "'score_path_'" in verdict.detail


def test_different_depths_of_encoder_and_decoder_are_unsupported():
    case = model_case(MODEL)
    case.info['args']['dec_layers'] = 3

    assert check_case(case).status == 'unsupported'
