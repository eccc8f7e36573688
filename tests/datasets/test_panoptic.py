import copy
import json

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_panoptic import panoptic_dataset, write_panoptic_data

PACK = dict(type='PackDetInputs')
LOAD = dict(type='LoadImageFromFile')


@pytest.fixture
def root(tmp_path):
    return write_panoptic_data(tmp_path / 'data', images=1)


def load(root, **settings):
    transform = dict(
        type='mmsparse.LoadPanopticSegments', num_things_classes=2, **settings
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(panoptic_dataset(root, pipeline=[LOAD, transform]))[0]


def change(root, function):
    """Change the annotations of the only image."""
    path = root / 'panoptic.json'
    content = json.loads(path.read_text())
    function(content['annotations'][0]['segments_info'])
    path.write_text(json.dumps(content))


def test_things_and_stuff_become_objects(root):
    found = load(root)

    assert found['gt_bboxes_labels'].tolist() == [0, 1, 1, 2, 3]
    assert not found['gt_ignore_flags'].any()
    assert 'gt_seg_map' not in found
    masks = found['gt_masks'].masks
    assert masks.shape == (5, 48, 64)
    assert (masks.sum(0) == 1).all()
    for mask, box in zip(masks, found['gt_bboxes'].tensor.tolist(), strict=True):
        rows, columns = mask.nonzero()
        assert box == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_boxes_may_contain_their_last_pixels(root):
    released, whole = load(root), load(root, whole_pixels=True)

    expected = released['gt_bboxes'].tensor + torch.tensor([0, 0, 1, 1])
    assert torch.equal(whole['gt_bboxes'].tensor, expected)


@pytest.mark.parametrize('with_crowd', [False, True])
def test_crowds_are_optional(root, with_crowd):
    change(root, lambda segments: segments[0].update(iscrowd=1))

    labels = load(root, with_crowd=with_crowd)['gt_bboxes_labels'].tolist()

    assert labels == [0] * with_crowd + [1, 1, 2, 3]


def test_a_segment_that_is_not_in_the_png_is_skipped(root):
    change(root, lambda segments: segments.append(dict(segments[0], id=5)))

    assert len(load(root)['gt_masks']) == 5


def test_a_crop_clips_the_boxes_of_segments(root):
    """And keeps a segment whose box survives without a pixel, as released."""
    from mmdet.datasets.transforms import RandomCrop

    found = load(root)
    np.random.seed(0)

    cropped = RandomCrop((20, 20), allow_negative_crop=True)(copy.deepcopy(found))

    boxes, masks = cropped['gt_bboxes'].tensor, cropped['gt_masks'].masks
    assert 0 < len(boxes) == len(masks) == len(cropped['gt_bboxes_labels'])
    assert boxes.min() >= 0
    assert boxes.max() <= 20
    assert masks.shape[1:] == (20, 20)
    assert not torch.equal(boxes, found['gt_bboxes'].tensor[: len(boxes)])


def test_ids_of_more_than_one_byte_are_read(root):
    colors = np.asarray(Image.open(root / 'segments/1.png'))
    assert {tuple(x) for x in colors.reshape(-1, 3)} >= {(44, 1, 0), (112, 17, 1)}

    assert load(root)['gt_masks'].masks[3:].any((1, 2)).all()


def test_an_image_without_annotations_passes(root):
    from mmsparse.datasets.panoptic import LoadPanopticSegments

    assert LoadPanopticSegments()(dict(img_path='x.jpg')) == dict(img_path='x.jpg')
    assert 'num_things_classes=80' in repr(LoadPanopticSegments())
