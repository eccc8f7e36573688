"""Images in memory: recorded, listed drawings, and pixels of a figure."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import mmsparse
from mmsparse.visualization import (
    draw_attention,
    list_drawings,
    rasterize,
    record_image,
)

MODELS = {'dat': 'dat-nano', 'biformer': 'biformer-pico', 'shunted': 'shunted-nano'}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (48, 96, 3), np.uint8)


@pytest.fixture
def build():
    return lambda family, **options: mmsparse.create_model(
        MODELS[family], num_classes=3, **options
    ).eval()


def test_an_image_is_normalized_with_the_values_of_imagenet(build, image):
    sample = record_image(build('biformer'), image)

    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(sample.recording.inputs, (pixels - mean) / std)
    assert np.array_equal(sample.image, image)


def test_values_of_the_model_or_of_the_arguments_come_first(build):
    image = np.full((32, 32, 3), 51, np.uint8)  # 0.2
    model = build('biformer')
    model.pretrained_cfg |= dict(mean=(0.5,) * 3, std=(0.5,) * 3)

    known = record_image(model, image).recording.inputs
    given = record_image(model, image, mean=[0.1] * 3, std=[0.2] * 3).recording.inputs

    torch.testing.assert_close(known, torch.full((1, 3, 32, 32), -0.6))
    torch.testing.assert_close(given, torch.full((1, 3, 32, 32), 0.5))


def test_the_input_is_resized_and_the_query_moves_with_it(build, image):
    sample = record_image(build('shunted'), image, size=(96, 192))

    assert sample.recording.inputs.shape == (1, 3, 96, 192)
    layer = sample.recording.layers[0]  # 24 x 48 cells of 4 pixels
    assert sample.query_at((50, 30), layer) == 15 * 48 + 25


def test_a_backbone_is_recorded_too(build, image):
    sample = record_image(build('dat', features_only=True), image)

    assert sample.recording.layers[0].title == 'stage 1, block 1'


@pytest.mark.parametrize(
    'wrong',
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))],
    ids=['gray', 'alpha', 'float'],
)
def test_other_arrays_are_an_error(wrong, build):
    message = r'image must be RGB with shape \(H, W, 3\) and dtype uint8; got \(8, 8'
    with pytest.raises(ValueError, match=message):
        record_image(build('biformer'), wrong)


@pytest.mark.parametrize(
    ('family', 'special'),
    [('dat', ['sampled_keys']), ('biformer', ['routed_regions']), ('shunted', [])],
)
def test_the_drawings_of_a_family(family, special, build, image):
    model = build(family)
    sample = record_image(model, image)

    drawings = list_drawings(sample, model.backbone)

    assert list(drawings) == ['attention', *special, 'receptive_field']
    assert list(list_drawings(sample)) == ['attention', *special]
    for draw in drawings.values():
        assert isinstance(draw((50, 30)), Figure)


def test_a_figure_becomes_pixels(build, image):
    figure = draw_attention(record_image(build('biformer'), image), (50, 30))

    small, large = rasterize(figure, dpi=50), rasterize(figure, dpi=100)

    width, height = (round(100 * side) for side in figure.get_size_inches())
    assert large.dtype == np.uint8
    assert large.shape == pytest.approx((height, width, 3), abs=1)
    assert small.shape == pytest.approx((height / 2, width / 2, 3), abs=1)
    assert large.min() < 50 and (large[0] == 255).all()
