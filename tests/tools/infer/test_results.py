"""Predictions as plain data and as text."""

import numpy as np
import pytest
import torch
from infer.results import Results
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from pycocotools import mask as coco

NAMES = ['猫', 'Größe', 'dog']


@pytest.fixture
def results():
    return Results(NAMES, 0.3)


def test_a_detection_has_all_boxes_and_masks(results):
    masks = torch.zeros(3, 8, 12, dtype=torch.bool)
    masks[0, 2:4, 5:9] = True
    found = InstanceData(
        labels=torch.tensor([1, 1, 0]),
        scores=torch.tensor([0.9, 0.5, 0.1]),
        bboxes=torch.tensor([[5.0, 2.0, 9.0, 4.125]] * 3),
        masks=masks,
    )
    sample = DetDataSample(pred_instances=found)

    content = results.as_json(sample)

    assert content['labels'] == [1, 1, 0]
    assert content['names'] == ['Größe', 'Größe', '猫']
    assert content['scores'] == [0.9, 0.5, 0.1]
    assert content['bboxes'][0] == [5, 2, 9, 4.12]
    assert np.array_equal(coco.decode(content['masks'][0]), masks[0])
    assert results.label_map(sample) is None
    assert results.describe(sample) == 'Größe: 2'
    nothing = DetDataSample(pred_instances=found[2:])
    assert results.describe(nothing) == 'no score of 0.3 or more'


def test_a_segmentation_has_a_label_map_and_areas(results):
    labels = torch.tensor([[[2, 2, 2], [2, 0, 300]]])
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))

    assert results.as_json(sample)['classes'] == [
        dict(label=0, name='猫', pixels=1),
        dict(label=2, name='dog', pixels=4),
        dict(label=300, name='class 300', pixels=1),
    ]
    label_map = results.label_map(sample)
    assert label_map.dtype == np.uint16
    assert label_map.tolist() == labels[0].tolist()
    assert results.describe(sample) == 'dog 67%, 猫 17%, class 300 17%'


def test_a_classification_has_all_scores(results):
    sample = DataSample()
    sample.set_pred_score(torch.tensor([0.2, 0.7, 0.1]))

    assert results.as_json(sample) == dict(
        pred_label=1, pred_score=0.7, pred_class='Größe', pred_scores=[0.2, 0.7, 0.1]
    )
    assert results.describe(sample) == 'Größe (0.70)'


def test_many_classes_are_shortened(results):
    labels = torch.arange(7)
    sample = DetDataSample(pred_instances=InstanceData(labels=labels))

    line = results.describe(sample)

    assert line == '猫: 1, Größe: 1, dog: 1, class 3: 1, class 4: 1 and 2 more'
