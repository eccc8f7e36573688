import numpy as np
import pytest
import torch
from mmcv.transforms import CenterCrop, LoadImageFromFile, Pad, RandomFlip, Resize
from PIL import Image

from mmsparse.visualization import ImageTransform
from mmsparse.visualization.image_transform import run_pipeline

SPOT = (13, 37)  # x and y of the upper left corner of a white square
SIDE = 8


@pytest.fixture
def picture(tmp_path):
    """A dark picture of 60x80 with a white square."""
    pixels = np.random.default_rng(0).integers(0, 40, (80, 60, 3), np.uint8)
    pixels[SPOT[1] : SPOT[1] + SIDE, SPOT[0] : SPOT[0] + SIDE] = 255
    path = tmp_path / 'spot.png'
    Image.fromarray(pixels).save(path)
    return str(path)


def flip(direction):
    return RandomFlip(prob=1.0, direction=direction)


PIPELINES = {
    'nothing': [],
    'resize': [Resize(scale=(120, 160))],
    'unequal': [Resize(scale=(90, 200), keep_ratio=False)],
    'flip': [flip('horizontal')],
    'resize, flip': [Resize(scale=(120, 160)), flip('horizontal')],
    'flip down, resize': [flip('vertical'), Resize(scale=(120, 160))],
    'flip both, pad': [flip('diagonal'), Pad(size=(70, 96))],
    'resize, cut': [Resize(scale=(120, 160)), CenterCrop(crop_size=(100, 130))],
    'cut, flip, resize': [
        CenterCrop(crop_size=(50, 60)),
        flip('horizontal'),
        Resize(scale=(100, 120)),
    ],
}


@pytest.mark.parametrize('name', PIPELINES)
def test_a_spot_is_followed_through_the_pipeline(name, picture):
    results, _, frame = run_pipeline([LoadImageFromFile(), *PIPELINES[name]], picture)

    rows, columns = np.nonzero(results['img'].min(-1) > 147)
    found = [columns.mean() + 0.5, rows.mean() + 0.5]
    center = torch.tensor([SPOT[0] + SIDE / 2, SPOT[1] + SIDE / 2])
    assert frame.to_input(center).tolist() == pytest.approx(found, abs=0.26)
    torch.testing.assert_close(frame.to_picture(frame.to_input(center)), center)
    assert frame.picture == (80, 60)
    assert frame.size == results['img'].shape[:2]


def test_the_picture_is_as_the_file_has_it(picture):
    _, pixels, _ = run_pipeline([LoadImageFromFile(), flip('horizontal')], picture)

    assert (pixels == np.asarray(Image.open(picture))).all()


def test_ground_truth_is_not_loaded(picture):
    class LoadAnnotations:
        def __call__(self, results):
            raise AssertionError('there is none')

    run_pipeline([LoadImageFromFile(), LoadAnnotations()], picture)


def test_a_mirrored_box_keeps_its_corners_in_order():
    frame = ImageTransform((40, 60), (40, 60)).mirrored('horizontal')

    box = frame.boxes_to_picture(torch.tensor([[10.0, 5, 20, 30]]))

    assert box.tolist() == [[40, 5, 50, 30]]


def test_a_transform_that_cannot_be_followed_is_refused(picture):
    class Shear:
        def __call__(self, results):
            return results | dict(img=results['img'][:, ::2])

    with pytest.raises(ValueError, match='must resize, flip, cut or pad.*got Shear'):
        run_pipeline([LoadImageFromFile(), Shear()], picture)


def test_a_cut_that_also_changes_pixels_is_refused(picture):
    class ShiftingCrop:
        def __call__(self, results):
            return results | dict(img=results['img'][:40] // 2 + 1)

    with pytest.raises(ValueError, match='A cut must be a part'):
        run_pipeline([LoadImageFromFile(), ShiftingCrop()], picture)


def test_a_pipeline_without_a_picture_is_refused(picture):
    with pytest.raises(ValueError, match='transforms must load a picture'):
        run_pipeline([], picture)


@pytest.mark.parametrize('point', [(60, 10), (-1, 10), (10, 80)], ids=str)
def test_a_point_outside_is_refused_with_the_size(point):
    frame = ImageTransform((80, 60), (80, 60))

    with pytest.raises(ValueError, match='which is 60 wide and 80 high; got x='):
        frame.check_point(point)


def test_a_point_that_was_cut_off_is_refused_with_what_is_left():
    frame = (
        ImageTransform((80, 60), (80, 60)).resized((160, 120)).cut(20, 0, (100, 120))
    )
    frame.check_point((5, 10))

    with pytest.raises(ValueError, match='x from 0 to 60 and y from 10 to 60; got'):
        frame.check_point((5, 9))
