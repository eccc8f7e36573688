import math

import numpy as np
import pytest
import torch
from planting import plant_offset
from torch import nn

from mmsparse.visualization import (
    ImageTransform,
    draw_attention,
    draw_receptive_field,
    draw_regions,
    draw_sampled_keys,
)

PLAIN = ImageTransform((96, 128), (96, 128))


def test_sampled_keys_are_drawn_where_the_planted_offset_puts_them(look, drawn):
    backbone, scene = look('dat', PLAIN)
    layer = backbone.stages[1][1].attn  # keys every 2 cells of 8 pixels
    # A map of 12x16 cells: from -1 to +1 are 11 and 15 of them.
    plant_offset(layer, y=-2 * 1 / 11, x=-2 * 0.5 / 15)
    backbone.stages[0][1].attn.conv_offset[3].weight.data.zero_()

    figure = draw_sampled_keys(scene)

    _, axis = figure.axes
    of = drawn(axis)
    (moves,) = of.lines
    keys = np.asarray(of.dots[-1].get_offsets())
    rows, columns = np.meshgrid(range(6), range(8), indexing='ij')
    # DAT++ lays its grid from the first cell's center plus half a step.
    y = ((2 * rows + 1) / 5 * 11 / 2 - 1).clip(0, 11) * 8 + 4
    x = ((2 * columns + 1) / 7 * 15 / 2 - 0.5).clip(0, 15) * 8 + 4
    assert keys == pytest.approx(np.stack([x, y], -1).reshape(-1, 2), abs=1e-3)
    starts, ends = moves[:, 0], moves[:, 1]
    assert ends == pytest.approx(np.asarray(keys))
    inside = (ends[:, 0] < 120) & (ends[:, 1] > 4) & (starts[:, 1] < 92)
    assert inside.sum() > 20
    steps = (ends - starts)[inside]
    assert steps == pytest.approx(np.tile([[-4, -8]], (len(steps), 1)), abs=1e-3)


def test_sampled_keys_are_mirrored_with_the_picture(look, drawn, mirrored_frame):
    _, scene = look('dat', mirrored_frame, canvas=(96, 128))
    straight = ImageTransform((40, 60), (80, 120), scale=(2.0, 2.0))

    found = []
    for frame in (mirrored_frame, straight):
        scene.frame = frame
        axis = draw_sampled_keys(scene).axes[-1]
        found.append(np.asarray(drawn(axis).dots[-1].get_offsets()))

    assert found[0][:, 0] == pytest.approx(60 - found[1][:, 0])
    assert found[0][:, 1] == pytest.approx(found[1][:, 1])


def test_dots_are_as_large_as_the_attention_received(look, drawn):
    backbone, scene = look('dat', PLAIN)
    layer, x = scene.seen.layers[-1].layer, scene.seen.layers[-1].x
    with torch.no_grad():
        every = torch.arange(x.shape[-2] * x.shape[-1])
        (look_of_all,) = layer.attention_maps(x, every)
    expected = look_of_all.weights[0].mean((0, 1))

    axis = draw_sampled_keys(scene).axes[-1]

    sizes = drawn(axis).dots[-1].get_sizes()
    assert (sizes - 2) / (sizes.max() - 2) == pytest.approx(
        (expected / expected.max()).numpy(), abs=1e-5
    )


def test_regions_line_up_with_the_picture_where_they_are_padded(look, drawn):
    # Stage 2 has 13x11 cells of 8 pixels; four regions a side of 4x3 cells overhang.
    _, scene = look('biformer', ImageTransform((104, 88), (104, 88)))

    figure = draw_regions(scene, point=(50.0, 70.0))

    above, below = figure.axes[1], figure.axes[3]
    chosen, grid, routed, own = drawn(above).polygons
    corners = [[24 * j, 32 * i, 24 * j + 24, 32 * i + 32] for i, j in np.ndindex(4, 4)]
    assert grid.extents == pytest.approx(np.array(corners))
    assert own.extents.tolist() == [[48, 64, 72, 96]]
    assert (chosen.extents == routed.extents).all()
    assert len(chosen.extents) == 4
    assert above.get_xlim() == below.get_xlim() == (0, 88)
    tokens = drawn(below).polygons[0].extents
    assert len(tokens) == 4 * 12
    for region in routed.extents:
        inside = (tokens[:, :2] >= region[:2]) & (tokens[:, 2:] <= region[2:])
        assert inside.all(-1).sum() == 12


def test_regions_are_colored_by_their_scores(look, drawn):
    _, scene = look('biformer', PLAIN)
    seen = scene.seen.layers[-1]
    with torch.no_grad():
        scores = seen.layer.regions(seen.x).scores[0, 0]

    axis = draw_regions(scene, point=(1.0, 1.0)).axes[1]

    opacity = drawn(axis).polygons[0].colors[:, 3]
    assert opacity == pytest.approx((0.35 + 0.5 * scores / scores.max()).numpy())


def test_coarse_and_fine_groups_are_side_by_side(look, drawn):
    _, scene = look('shunted', PLAIN)

    figure = draw_attention(scene, point=(40.0, 40.0))

    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        f'stage {stage}, block {block}, {group}'
        for group in ('coarse', 'fine')
        for stage, block in ((1, 1), (2, 2))
    ]
    coarse, fine = (drawn(figure.axes[i]).polygons[0].extents for i in (1, 3))
    assert (np.diff(coarse[:, [0, 2]]) == 32).all()  # 4 cells of 8 pixels
    assert (np.diff(fine[:, [0, 2]]) == 16).all()
    assert len(coarse) == 3 * 4
    assert len(fine) == 6 * 8


def test_heat_lies_on_the_key_that_is_attended_to(look, drawn, mirrored_frame):
    backbone, scene = look('shunted', mirrored_frame, canvas=(96, 128))
    seen = scene.seen.layers[0]
    with torch.no_grad():
        (coarse, _) = seen.layer.attention_maps(seen.x, torch.tensor([0]))
    y, x = coarse.locations()[0, 0, coarse.weights[0].mean(0)[0].argmax()].tolist()
    expected = mirrored_frame.to_picture(torch.tensor([4 * x, 4 * y]))

    axis = draw_attention(scene, point=(59.9, 0.1)).axes[0]

    polygons = drawn(axis).polygons[0]
    hottest = polygons.extents[polygons.colors[:, 3].argmax()]
    center = (hottest[:2] + hottest[2:]) / 2
    assert center == pytest.approx(expected.numpy())


@pytest.mark.parametrize('draw', [draw_attention, draw_regions])
def test_a_point_outside_the_picture_is_refused(draw, look):
    _, scene = look('biformer', PLAIN)

    with pytest.raises(ValueError, match='128 wide and 96 high; got x=128'):
        draw(scene, (128.0, 1.0))


def test_the_receptive_field_of_one_convolution_is_its_kernel(look):
    _, scene = look('biformer', PLAIN)
    conv = nn.Conv2d(3, 2, 5, stride=4, padding=2)
    backbone = nn.Sequential(conv)
    backbone.forward = lambda x: (conv(x),)

    figure = draw_receptive_field(scene, backbone, (41.0, 30.0))

    (axis,) = figure.axes
    field = axis.images[-1].get_array()
    rows, columns = np.nonzero(field)
    assert (rows.min(), rows.max()) == (26, 30)  # cell 7 of 4 pixels, two around
    assert (columns.min(), columns.max()) == (38, 42)
    assert axis.get_title().startswith('24x32 cells: half in 0.')
    part = float(axis.get_title().split()[-1].rstrip('%')) / 100
    assert 0 < part <= 25 / (96 * 128) + 1e-3
    assert math.isclose(field.max(), 1)
