"""Cases with other arguments than the stored ones and outputs of mmsparse itself."""

import copy
from pathlib import Path

import pytest
import torch
from parity import Case, check_case
from parity.detr import CASE_TYPES

SHIPPED = Path(__file__).parents[2] / 'data' / 'parity' / 'detr'
BACKBONE = dict(depth=18, base_channels=2, dilation=False, masks=False)
MODEL = dict(
    backbone=BACKBONE,
    hidden_dim=16,
    nheads=2,
    enc_layers=1,
    dec_layers=2,
    dim_feedforward=24,
    num_queries=5,
    num_classes=6,
)
SHAPES = {
    'batch 3': {},
    'ResNet-34': dict(backbone=dict(BACKBONE, depth=34)),
    'DC5': dict(backbone=dict(BACKBONE, depth=50, dilation=True)),
    'COCO': dict(num_classes=91),
    'masks': dict(
        backbone=dict(BACKBONE, depth=50, masks=True), hidden_dim=128, nheads=8
    ),
}
OUTPUTS = ['padding', 'src_proj', 'memory', 'hs', 'pred_logits', 'pred_boxes']
OUTPUTS += ['aux.0.pred_logits', 'attention.encoder_last', 'attention.decoder_last']


def model_case(arguments):
    sizes = [[70, 90], [64, 33], [40, 96]]
    info = dict(
        kind='detr',
        constructor=MODEL | arguments,
        salt='x',
        state_gains=[['backbone', 0.5]],
        image_sizes=sizes,
        target_sizes=[[2 * y, 3 * x] for y, x in sizes],
        tolerance=dict(atol=1e-5, rtol=1e-4),
    )
    images = {
        f'in.image.{i}': torch.randint(255, (3, *size)).byte()
        for i, size in enumerate(sizes)
    }
    case = Case('x', 'detr', info, images)
    actual = CASE_TYPES['detr'](case)
    masks = (
        ['bbox_mask', 'pred_masks'] if info['constructor']['backbone']['masks'] else []
    )
    for name in [*OUTPUTS, *masks, 'detections.2.scores', 'detections.2.labels']:
        case.tensors[name] = actual[name]
    return case


@pytest.mark.parametrize('name', SHAPES)
def test_models_of_other_sizes_are_compared(name):
    case = model_case(SHAPES[name])

    verdict = check_case(case)

    assert verdict.status == 'passed', verdict
    case.tensors['memory'] = case.tensors['memory'] + 1
    assert check_case(case).status == 'failed'


def test_things_need_not_be_the_first_classes():
    case = Case.read(SHIPPED / 'postprocess_panoptic.json')
    changed = copy.deepcopy(case)
    order = [6, 0, 7, 1, 8, 2, 9, 3, 10, 4, 5]  # new labels to old ones
    things = {
        str(i): case.info['args']['is_thing_map'][str(x)] for i, x in enumerate(order)
    }
    changed.info['args']['is_thing_map'] = things
    changed.tensors['in.pred_logits'] = case.tensors['in.pred_logits'][
        ..., [*order, 11]
    ]
    for name, tensor in case.tensors.items():
        new = torch.tensor(order).argsort()
        if name.endswith('segments'):
            changed.tensors[name][:, 1] = new[tensor[:, 1]]
        elif name.endswith('labels'):
            changed.tensors[name] = new[tensor]

    assert check_case(changed).status == 'passed'


def test_a_wrong_segment_fails():
    case = Case.read(SHIPPED / 'postprocess_panoptic.json')
    case.tensors['panoptic.0.ids'][5, 5] += 1

    verdict = check_case(case)

    assert (verdict.status, verdict.detail) == ('failed', 'panoptic.0.ids')


def test_a_wrong_gradient_fails():
    case = Case.read(SHIPPED / 'criterion_masks_b2.json')
    case.tensors['grad.pred_masks'][0, 0, 0, 0] += 0.1

    assert check_case(case).status == 'failed'


def test_another_kind_is_unsupported():
    case = Case.read(SHIPPED / 'criterion_masks_b2.json')
    case.info['kind'] = 'matcher'

    assert check_case(case).status == 'unsupported'
