import re

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS

from mmsparse.datasets.transforms import CheckImage, CheckSegLabels


def sample(labels, **more):
    return dict(
        img_path='images/a.jpg',
        seg_map_path='annotations/a.png',
        ori_shape=(4, 6),
        gt_seg_map=np.asarray(labels, dtype=np.uint8),
        **more,
    )


def test_labels_that_fit_pass_unchanged():
    labels = np.array([[0, 1, 2, 255, 0, 0]] * 4)
    item = sample(labels, reduce_zero_label=False)

    checked = CheckSegLabels(num_classes=3).transform(item)

    assert checked is item
    assert np.array_equal(checked['gt_seg_map'], labels)


def test_an_image_without_labels_passes():
    assert CheckSegLabels(num_classes=3).transform({'img': 1}) == {'img': 1}


@pytest.mark.parametrize('size', [{}, dict(width=6, height=4), dict(width=7, height=3)])
def test_an_image_of_the_size_of_its_annotations_passes(size):
    item = dict(img_path='a.jpg', ori_shape=(4, 6), **size)

    assert CheckImage().transform(item) is item


@pytest.mark.parametrize('size', [dict(width=8, height=4), dict(width=6, height=2)])
def test_an_image_of_another_size_is_an_error(size):
    item = dict(img_path='a.jpg', ori_shape=(4, 6), **size)

    with pytest.raises(ValueError, match='a.jpg: the image has width x height 6 x 4, '):
        CheckImage().transform(item)


def test_the_check_of_images_is_registered():
    settings = dict(type='mmsparse.CheckImage', imdecode_backend='pillow')

    assert repr(TRANSFORMS.build(settings)) == "CheckImage(imdecode_backend='pillow')"


def test_the_check_of_labels_is_registered():
    check = TRANSFORMS.build(dict(type='mmsparse.CheckSegLabels', num_classes=3))

    assert repr(check) == 'CheckSegLabels(num_classes=3)'


@pytest.mark.parametrize(
    ('item', 'message'),
    [
        (
            sample(np.zeros((4, 5))),
            'annotations/a.png: the label map has height x width 4 x 5, but its '
            'image images/a.jpg has 4 x 6.',
        ),
        (
            sample(np.zeros((4, 6, 3))),
            'annotations/a.png: a label map must have one label per pixel, (H, W); '
            'got the shape (4, 6, 3).',
        ),
        (
            sample(np.array([[0, 1, 3, 7, 2, 255]] * 4)),
            'annotations/a.png: labels must be from 0 to 2, or 255 for pixels without '
            'a class; got 3, 7 (num_classes=3, reduce_zero_label=False).',
        ),
        (  # as in the file, before 1 was subtracted
            sample(np.array([[0, 1, 3, 7, 2, 255]] * 4), reduce_zero_label=True),
            'annotations/a.png: labels must be from 1 to 3, or 0 or 255 for pixels '
            'without a class; got 4, 8 (num_classes=3, reduce_zero_label=True).',
        ),
    ],
    ids=['other size', 'colors', 'out of range', 'out of range, reduced'],
)
def test_labels_that_do_not_fit_are_an_error_with_their_file(item, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CheckSegLabels(num_classes=3).transform(item)
