"""Drawings of predictions: size, position, and names of any script."""

import warnings

import numpy as np
import pytest
import torch
from infer.drawing import LONGER_SIDE, VISUALIZERS_OF_HOSTS, Drawing
from infer.predictor import _segments
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmsparse.apis import register_host

GRAY = np.full((48, 64, 3), 120, np.uint8)
RED, GREEN = (255, 0, 0), (0, 255, 0)


def make_drawing(host, classes=('a', 'b'), **settings):
    register_host(host)
    types = dict(type=VISUALIZERS_OF_HOSTS[host], _scope_=host)
    cfg = Config(dict(default_scope=host, visualizer=types | settings))
    return Drawing(cfg, classes, [RED, GREEN], 0.3)


def instances(**more):
    return InstanceData(
        labels=torch.tensor([1, 0]), scores=torch.tensor([0.9, 0.1]), **more
    )


def share(image, color, tolerance=40):
    """Return the share of pixels of a color."""
    return (np.abs(image.astype(int) - color).max(-1) <= tolerance).mean()


def predict(host):
    if host == 'mmdet':
        boxes = torch.tensor([[5.0, 10.0, 55.0, 40.0]] * 2)
        return DetDataSample(pred_instances=instances(bboxes=boxes))
    if host == 'mmseg':
        labels = torch.zeros(1, 48, 64, dtype=torch.long)
        labels[:, 24:] = 1
        return SegDataSample(pred_sem_seg=PixelData(data=labels))
    sample = DataSample()
    sample.set_pred_score(torch.tensor([0.2, 0.8])).set_pred_label(1)
    return sample


@pytest.mark.parametrize('host', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_small_image_is_enlarged_and_a_large_one_is_not(host):
    small = make_drawing(host)(GRAY, predict(host))

    assert small.shape == (LONGER_SIDE * 3 // 4, LONGER_SIDE, 3)

    large = np.full((500, 700, 3), 120, np.uint8)
    result = predict(host)
    if host == 'mmseg':
        result.pred_sem_seg = PixelData(data=torch.ones(1, 500, 700).long())
    assert make_drawing(host)(large, result).shape == large.shape


def test_boxes_above_the_threshold_are_at_their_place():
    drawn = make_drawing('mmdet')(GRAY, predict('mmdet'))

    green = (drawn[..., 1] > 180) & (drawn[..., 0] < 80)
    y, x = np.nonzero(green)
    assert [x.min(), y.min(), x.max(), y.max()] == pytest.approx(
        [50, 100, 550, 400], abs=4
    )
    assert share(drawn, RED) == 0


def test_masks_and_panoptic_segments_are_filled():
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 12:36, 16:48] = True
    result = DetDataSample(pred_instances=instances(masks=masks))
    segments = torch.full((1, 48, 64), 2)  # of no class
    segments[0, masks[0]] = 1001
    panoptic = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=segments))
    panoptic.pred_instances = _segments(panoptic, 2)

    for sample in (result, panoptic):
        drawn = make_drawing('mmdet', alpha=1.0)(GRAY, sample)

        assert share(drawn, GREEN, 90) == pytest.approx(0.25, abs=0.03)
        assert share(drawn, RED) == 0
    assert panoptic.pred_instances.labels.tolist() == [1]


def test_an_image_without_objects_stays_as_it_is():
    result = DetDataSample(pred_instances=instances(bboxes=torch.zeros(2, 4))[1:])

    assert np.abs(make_drawing('mmdet')(GRAY, result).astype(int) - 120).max() <= 1


def test_a_label_map_is_drawn_with_a_name_in_each_region():
    drawn = make_drawing('mmseg')(GRAY, predict('mmseg'))

    for half, color in ((drawn[:240], RED), (drawn[240:], GREEN)):
        mixed = 0.8 * np.array(color) + 0.2 * 120  # opacity of mmseg
        assert share(half, mixed, 2) > 0.9
        middle = half[90:150, 270:370]
        assert middle.std() > 10  # the name


@pytest.mark.parametrize('host', ['mmdet', 'mmseg', 'mmpretrain'])
@pytest.mark.parametrize('name', ['Größe', 'пять', 'US$ to A$', r'a_{b}^\x'])
def test_names_of_any_script_are_drawn_as_text(host, name):
    plain = make_drawing(host, ['a', '?'])(GRAY, predict(host))
    drawing = make_drawing(host, ['a', name])

    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'Glyph')  # is missing
        drawn = drawing(GRAY, predict(host))

    assert np.abs(drawn.astype(int) - plain).max() > 50


def test_characters_that_no_font_has_are_reported_and_do_not_stop(capsys):
    drawing = make_drawing('mmdet', ['a', 'x\U000e0fff'])

    assert 'no installed font has \U000e0fff, drawn as boxes' in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert drawing(GRAY, predict('mmdet')).std() > 10


def test_unknown_classes_and_colors_are_numbered_and_distinct():
    register_host('mmdet')
    drawing = Drawing(Config(dict(default_scope='mmdet')), [], [], 0.05)

    drawing(GRAY, predict('mmdet'))

    meta = drawing.visualizer.dataset_meta
    assert meta['classes'] == ['class 0', 'class 1']
    assert len(set(meta['palette'])) == 2
