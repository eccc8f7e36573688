from functools import partial

import numpy as np
import pytest
import torch
from mmcv.transforms import CenterCrop, LoadImageFromFile, Pad, RandomFlip, Resize
from PIL import Image

from mmsparse.visualization import ImageTransform
from mmsparse.visualization.image_transform import run_pipeline

CORNER = (13, 37)  # (x, y) of the top left corner of a white square
SIDE = 8


@pytest.fixture
def image(tmp_path):
    """A dark image of 60x80 with a white square."""
    pixels = np.random.default_rng(0).integers(0, 40, (80, 60, 3), np.uint8)
    pixels[CORNER[1] : CORNER[1] + SIDE, CORNER[0] : CORNER[0] + SIDE] = 255
    path = tmp_path / 'square.png'
    Image.fromarray(pixels).save(path)
    return str(path)


def flip(direction):
    return RandomFlip(prob=1.0, direction=direction)


PIPELINES = {
    'none': [],
    'resize': [Resize(scale=(120, 160))],
    'stretch': [Resize(scale=(90, 200), keep_ratio=False)],
    'flip': [flip('horizontal')],
    'resize, flip': [Resize(scale=(120, 160)), flip('horizontal')],
    'vertical flip, resize': [flip('vertical'), Resize(scale=(120, 160))],
    'diagonal flip, pad': [flip('diagonal'), Pad(size=(70, 96))],
    'resize, crop': [Resize(scale=(120, 160)), CenterCrop(crop_size=(100, 130))],
    'crop, flip, resize': [
        CenterCrop(crop_size=(50, 60)),
        flip('horizontal'),
        Resize(scale=(100, 120)),
    ],
}


@pytest.mark.parametrize('name', PIPELINES)
def test_pixels_are_tracked_through_the_pipeline(name, image):
    results, _, transform = run_pipeline([LoadImageFromFile(), *PIPELINES[name]], image)

    rows, columns = np.nonzero(results['img'].min(-1) > 147)
    found = [columns.mean() + 0.5, rows.mean() + 0.5]
    center = torch.tensor([CORNER[0] + SIDE / 2, CORNER[1] + SIDE / 2])
    assert transform.to_input(center).tolist() == pytest.approx(found, abs=0.26)
    torch.testing.assert_close(transform.to_image(transform.to_input(center)), center)
    assert transform.image_size == (80, 60)
    assert transform.input_size == results['img'].shape[:2]


def test_the_original_image_is_returned(image):
    _, pixels, _ = run_pipeline([LoadImageFromFile(), flip('horizontal')], image)

    assert (pixels == np.asarray(Image.open(image))).all()


@pytest.mark.parametrize('shape', [(80, 60), (80, 60, 1), (80, 60, 2)], ids=str)
def test_an_image_of_few_channels_is_drawn_in_gray(shape, image):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    _, drawn, _ = run_pipeline([partial(load, pixels)], image)

    gray = pixels.reshape(80, 60, -1)[..., :1]
    assert (drawn == gray).all()
    assert drawn.shape == (80, 60, 3)


def test_the_first_channels_of_many_are_drawn(image):
    pixels = np.random.default_rng(0).integers(100, 4000, (80, 60, 5), np.uint16)

    _, drawn, _ = run_pipeline([partial(load, pixels)], image)

    assert (drawn.min(), drawn.max(), drawn.dtype) == (0, 255, np.uint8)
    order = pixels[..., 2].ravel().argsort(kind='stable')
    assert (np.diff(drawn[..., 0].ravel()[order].astype(int)) >= 0).all()


def load(pixels, results):
    """Load these pixels, as a transform does."""
    return results | dict(img=pixels)


def test_annotations_are_not_loaded(image):
    class LoadAnnotations:
        def __call__(self, results):
            raise AssertionError('an image has no annotations')

    run_pipeline([LoadImageFromFile(), LoadAnnotations()], image)


def test_corners_of_flipped_boxes_are_sorted():
    transform = ImageTransform((40, 60), (40, 60)).flipped('horizontal')
    boxes = torch.tensor([[10.0, 5, 20, 30]])

    assert transform.boxes_to_image(boxes).tolist() == [[40, 5, 50, 30]]
    assert transform.boxes_to_input(boxes).tolist() == [[40, 5, 50, 30]]


def test_a_transform_that_cannot_be_tracked_raises(image):
    class Shear:
        def __call__(self, results):
            return results | dict(img=results['img'][:, ::2])

    with pytest.raises(ValueError, match='must resize, flip, crop or pad.*got Shear'):
        run_pipeline([LoadImageFromFile(), Shear()], image)


def test_a_crop_that_changes_pixel_values_raises(image):
    class BrighteningCrop:
        def __call__(self, results):
            return results | dict(img=results['img'][:40] // 2 + 1)

    with pytest.raises(ValueError, match=r'not change pixel values; .* \(80, 60\)'):
        run_pipeline([LoadImageFromFile(), BrighteningCrop()], image)


def test_a_pipeline_that_loads_no_image_raises(image):
    with pytest.raises(ValueError, match='transforms must load the image'):
        run_pipeline([], image)


@pytest.mark.parametrize('point', [(60, 10), (-1, 10), (10, 80)], ids=str)
def test_a_point_outside_of_the_image_raises(point):
    transform = ImageTransform((80, 60), (80, 60))

    with pytest.raises(ValueError, match='width 60 and height 80; got x='):
        transform.check_point(point)


def test_a_point_that_was_cropped_raises():
    transform = ImageTransform((80, 60), (80, 60)).resized((160, 120))
    transform = transform.cropped(20, 0, (100, 120))
    transform.check_point((5, 10))

    with pytest.raises(ValueError, match='x from 0 to 60 and y from 10 to 60; got'):
        transform.check_point((5, 9))
