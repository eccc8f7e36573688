import numpy as np
import pytest
import torch
from constant_offset import set_constant_offset
from matplotlib.quiver import Quiver
from torch import nn

from mmsparse.visualization import (
    ImageTransform,
    draw_attention,
    draw_receptive_field,
    draw_routed_regions,
    draw_sampled_keys,
)

IDENTITY = ImageTransform((96, 128), (96, 128))


def test_sampled_keys_are_drawn_at_a_constant_offset(record_backbone, read_panel):
    backbone, sample = record_backbone('dat', IDENTITY)
    layer = backbone.stages[1][1].attn  # keys every 2 cells of 8 pixels
    # A feature map of 12x16 cells: from -1 to +1 are 11 and 15 of them.
    set_constant_offset(layer, y=-2 * 1 / 11, x=-2 * 0.5 / 15)
    backbone.stages[0][1].attn.conv_offset[3].weight.data.zero_()

    figure = draw_sampled_keys(sample)

    keys = np.asarray(read_panel(figure.axes[1]).dots[-1].get_offsets())
    (arrows,) = (x for x in figure.axes[3].collections if isinstance(x, Quiver))
    rows, columns = np.meshgrid(range(6), range(8), indexing='ij')
    # DAT++ starts its grid half a step after the center of the first cell.
    y = ((2 * rows + 1) / 5 * 11 / 2 - 1).clip(0, 11) * 8 + 4
    x = ((2 * columns + 1) / 7 * 15 / 2 - 0.5).clip(0, 15) * 8 + 4
    assert keys == pytest.approx(np.stack([x, y], -1).reshape(-1, 2), abs=1e-3)
    # Of 6 rows and 8 columns, 4 each have arrows.
    some = np.ix_([0, 2, 3, 5], [0, 2, 5, 7])
    ends = np.stack([x[some].ravel() for x in (x, y)], -1)
    steps = np.stack([arrows.U, arrows.V], -1)
    assert arrows.XY + steps == pytest.approx(ends, abs=1e-3)
    inside = (ends[:, 0] < 120) & (ends[:, 1] > 4) & (arrows.Y < 92)
    assert inside.sum() > 5
    expected = np.tile([[-4, -8]], (inside.sum(), 1))
    assert steps[inside] == pytest.approx(expected, abs=1e-3)


def test_sampled_keys_are_flipped_with_the_image(record_backbone, read_panel, flipped):
    _, sample = record_backbone('dat', flipped, padded_size=(96, 128))
    resized = ImageTransform((40, 60), (80, 120), scale=(2.0, 2.0))

    found = []
    for transform in (flipped, resized):
        sample.transform = transform
        axis = draw_sampled_keys(sample).axes[1]
        found.append(np.asarray(read_panel(axis).dots[-1].get_offsets()))

    assert found[0][:, 0] == pytest.approx(60 - found[1][:, 0])
    assert found[0][:, 1] == pytest.approx(found[1][:, 1])


def test_area_of_dots_is_the_received_attention(record_backbone, read_panel):
    _, sample = record_backbone('dat', IDENTITY)
    layer, x = sample.recording.layers[-1].layer, sample.recording.layers[-1].x
    with torch.no_grad():
        queries = torch.arange(x.shape[-2] * x.shape[-1])
        (attention,) = layer.attention_maps(x, queries)
    expected = attention.weights[0].mean((0, 1))

    axis = draw_sampled_keys(sample).axes[1]

    areas = read_panel(axis).dots[-1].get_sizes()
    assert (areas - 2) / (areas.max() - 2) == pytest.approx(
        (expected / expected.max()).numpy(), abs=1e-5
    )


def test_padded_regions_are_aligned_with_the_image(record_backbone, read_panel):
    # Stage 2 has 13x11 cells of 8 pixels; four regions a side of 4x3 cells overhang.
    _, sample = record_backbone('biformer', ImageTransform((104, 88), (104, 88)))

    figure = draw_routed_regions(sample, point=(50.0, 70.0))

    top, bottom = figure.axes[1], figure.axes[3]
    filled, grid, routed, own = read_panel(top).polygons
    corners = [[24 * j, 32 * i, 24 * j + 24, 32 * i + 32] for i, j in np.ndindex(4, 4)]
    assert grid.extents == pytest.approx(np.array(corners))
    assert own.extents.tolist() == [[48, 64, 72, 96]]
    assert (filled.extents == routed.extents).all()
    assert len(filled.extents) == 4
    assert top.get_xlim() == bottom.get_xlim() == (0, 88)
    tokens = read_panel(bottom).polygons[0].extents
    assert len(tokens) == 4 * 12
    for region in routed.extents:
        inside = (tokens[:, :2] >= region[:2]) & (tokens[:, 2:] <= region[2:])
        assert inside.all(-1).sum() == 12


def test_regions_are_colored_by_their_scores(record_backbone, read_panel):
    _, sample = record_backbone('biformer', IDENTITY)
    layer = sample.recording.layers[-1]
    with torch.no_grad():
        scores = layer.layer.regions(layer.x).scores[0, 0]

    axis = draw_routed_regions(sample, point=(1.0, 1.0)).axes[1]

    opacity = read_panel(axis).polygons[0].colors[:, 3]
    assert opacity == pytest.approx((0.25 + 0.6 * scores / scores.max()).numpy())


def test_coarse_and_fine_heads_are_rows(record_backbone, read_panel):
    _, sample = record_backbone('shunted', IDENTITY)

    figure = draw_attention(sample, point=(40.0, 40.0))

    *axes, bar = figure.axes
    assert [axis.get_title() for axis in axes] == [
        f'stage {stage}, block {block}, {group}'
        for group in ('coarse', 'fine')
        for stage, block in ((1, 1), (2, 2))
    ]
    assert bar.get_ylabel() == 'attention, relative to the largest of a panel'
    coarse, fine = (read_panel(figure.axes[i]).polygons[0].extents for i in (1, 3))
    assert (np.diff(coarse[:, [0, 2]]) == 32).all()  # 4 cells of 8 pixels
    assert (np.diff(fine[:, [0, 2]]) == 16).all()
    assert len(coarse) == 3 * 4
    assert len(fine) == 6 * 8


def test_the_key_with_the_largest_weight_is_hottest(
    record_backbone, read_panel, flipped
):
    _, sample = record_backbone('shunted', flipped, padded_size=(96, 128))
    layer = sample.recording.layers[0]
    with torch.no_grad():
        (coarse, _) = layer.layer.attention_maps(layer.x, torch.tensor([0]))
    y, x = coarse.locations()[0, 0, coarse.weights[0].mean(0)[0].argmax()].tolist()
    expected = flipped.to_image(torch.tensor([4 * x, 4 * y]))

    axis = draw_attention(sample, point=(59.9, 0.1)).axes[0]

    polygons = read_panel(axis).polygons[0]
    hottest = polygons.extents[polygons.colors[:, 3].argmax()]
    center = (hottest[:2] + hottest[2:]) / 2
    assert center == pytest.approx(expected.numpy())


@pytest.mark.parametrize('draw', [draw_attention, draw_routed_regions])
def test_a_point_outside_of_the_image_raises(draw, record_backbone):
    _, sample = record_backbone('biformer', IDENTITY)

    with pytest.raises(ValueError, match='width 128 and height 96; got x=128'):
        draw(sample, (128.0, 1.0))


def test_the_receptive_field_of_one_convolution_is_its_kernel(record_backbone):
    _, sample = record_backbone('biformer', IDENTITY)
    conv = nn.Conv2d(3, 2, 5, stride=4, padding=2)
    backbone = nn.Sequential(conv)
    backbone.forward = lambda x: (conv(x),)

    figure = draw_receptive_field(sample, backbone, (41.0, 30.0))

    axis, _ = figure.axes
    field = axis.images[-1].get_array()[..., 3] - 0.25
    rows, columns = np.nonzero(field > 1e-6)
    # Cell 7 of 4 pixels, two around, and two by the average over 5x5 pixels.
    assert (rows.min(), rows.max()) == (24, 32)
    assert (columns.min(), columns.max()) == (36, 44)
    assert axis.get_title().startswith('24x32 cells: half in 0.')
    part = float(axis.get_title().split()[-1].rstrip('%')) / 100
    assert 0 < part <= 25 / (96 * 128) + 1e-3
    assert field.max() == pytest.approx(0.6)
