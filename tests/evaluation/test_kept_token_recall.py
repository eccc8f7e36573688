import math
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData

from mmsparse.apis import read_config
from mmsparse.evaluation import KeptTokenRecall

CONFIGS = Path(__file__).parents[2] / 'configs'

# One level of 2x4 cells on an image of 40x80 pixels.
CENTERS = torch.tensor([(x, y) for y in (0.25, 0.75) for x in (1, 3, 5, 7)]) * 1.0
CENTERS[:, 0] /= 8
BOXES = [
    (0, 0, 80, 40),  # all cells
    (21, 1, 39, 19),  # cell 1, center (30, 10)
    (62, 22, 78, 38),  # cell 7, center (70, 30)
    (12, 2, 28, 38),  # no center
    (30, 10, 60, 30),  # centers on its border only
]
# The first layer keeps cells 1 and 6, the second cell 6 alone.
KEPT = torch.zeros(2, 8, dtype=torch.bool)
KEPT[0, 1] = KEPT[:, 6] = True


def sample(boxes=BOXES, kept=KEPT, **changes):
    sample = BaseDataElement(metainfo=dict(ori_shape=(40, 80)))
    sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4))
    sample.token_centers, sample.kept_tokens = CENTERS, kept
    for name, value in changes.items():
        setattr(sample, name, value)
    return sample


def evaluate(*samples):
    metric = KeptTokenRecall()
    metric.process(None, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


def test_a_box_is_kept_if_a_kept_token_is_inside():
    recalls = evaluate(sample())

    # Three of five boxes have a center inside: cell 1 two of them, cell 6 one.
    assert recalls == {
        'kept_token_recall/all_tokens': 3 / 5,
        'kept_token_recall/layer_1': 2 / 5,
        'kept_token_recall/layer_2': 1 / 5,
    }


def test_boxes_of_all_images_have_the_same_weight():
    recalls = evaluate(sample(), sample(BOXES[:1], ~KEPT), sample([]))

    assert recalls['kept_token_recall/layer_1'] == (2 + 1 + 0) / 6


def test_padding_is_inside_no_box():
    centers = CENTERS.clone()
    centers[1] = torch.tensor([1.2, 0.25])

    recalls = evaluate(sample(token_centers=centers))

    assert recalls['kept_token_recall/layer_1'] == 1 / 5


def test_the_recall_of_no_boxes_is_nan():
    assert all(math.isnan(value) for value in evaluate(sample([]), sample([])).values())


@pytest.mark.parametrize('name', ['gt_instances', 'kept_tokens'])
def test_incomplete_samples_are_an_error_with_the_missing_setting(name):
    given = sample().to_dict()
    del given[name]
    source = dict(gt_instances='LoadAnnotations', kept_tokens='mmsparse.KeptTokensHook')

    with pytest.raises(ValueError, match=f'must have {name}; got .*{source[name]}'):
        KeptTokenRecall().process(None, [given])


@pytest.mark.parametrize('scope', ['mmdet', 'mmengine'])
def test_it_is_registered(scope):
    metrics = [dict(type='mmsparse.KeptTokenRecall', prefix='mine')]

    with DefaultScope.overwrite_default_scope(scope):
        evaluator = Evaluator(metrics)
    evaluator.process(data_samples=[sample()])

    assert evaluator.evaluate(1)['mine/layer_2'] == 1 / 5


@pytest.mark.parametrize(
    'name',
    [
        *(f'focus-detr_{x}_8xb2-12e' for x in ('r50', 'swin-t', 'biformer-small')),
        *(f'sparse-detr_{x}_keep-10_8xb2-50e' for x in ('r50', 'swin-t')),
    ],
)
def test_the_coco_configs_measure_it_in_addition_to_ap(name):
    folder = name.partition('_')[0].replace('-', '_')
    cfg = read_config(str(CONFIGS / folder / f'{name}_coco.py'))

    for evaluators in (cfg.val_evaluator, cfg.test_evaluator):
        types = [evaluator.type for evaluator in evaluators]
        assert types == ['CocoMetric', 'mmsparse.KeptTokenRecall']
    assert cfg.custom_hooks[-1].type == 'mmsparse.KeptTokensHook'
