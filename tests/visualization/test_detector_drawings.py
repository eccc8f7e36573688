"""Drawings of a Focus-DETR with random weights, on a resized and flipped image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmsparse.apis import load_model
from mmsparse.errors import UsageError
from mmsparse.visualization import (
    choose_query_point,
    draw_all,
    draw_foreground_scores,
    draw_kept_tokens,
    draw_sampling_locations,
)
from mmsparse.visualization.detection import detection_at

SIZE = (60, 90)  # height and width of the image; resized by 1.5


def test_the_input_is_resized_and_flipped(detector_sample):
    assert detector_sample.transform.image_size == SIZE
    assert detector_sample.transform.input_size == (90, 135)
    assert detector_sample.transform.scale == (-1.5, 1.5)


def test_boxes_of_mmdet_equal_boxes_of_the_decoder_queries(detector_sample):
    scores, _, boxes = detector_sample.query_detections()
    height, width = SIZE
    ends = boxes.new_tensor([width, height] * 2)
    clipped = boxes.clamp(min=torch.zeros(4), max=ends)

    best = scores.argmax()

    assert len(detector_sample.boxes) == 50
    torch.testing.assert_close(
        detector_sample.boxes[0], clipped[best], atol=1e-2, rtol=0
    )


def test_zero_offsets_sample_at_the_center_of_the_box(detector_sample, read_panel):
    _, _, boxes = detector_sample.query_detections()
    query = detection_at(detector_sample)
    center = (boxes[query, :2] + boxes[query, 2:]) / 2

    figure = draw_sampling_locations(detector_sample)

    assert len(figure.axes) == 2  # layers
    for axis in figure.axes:
        content = read_panel(axis)
        box = content.boxes[-1]
        assert box == pytest.approx(boxes[query].tolist(), abs=1e-3)
        assert len(content.dots) == 3  # levels
        for dots in content.dots:
            points = np.asarray(dots.get_offsets())
            expected = np.tile(center.numpy(), (len(points), 1))
            assert points == pytest.approx(expected, abs=1e-2)


def test_the_detection_at_a_point_is_the_best_that_contains_it(detector_sample):
    scores, _, boxes = detector_sample.query_detections()
    last = scores.argmin()
    point = ((boxes[last, :2] + boxes[last, 2:]) / 2).tolist()
    containing = [
        i
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())
        if x1 <= point[0] < x2 and y1 <= point[1] < y2
    ]

    chosen = detection_at(detector_sample, tuple(point))

    assert chosen in containing
    assert scores[chosen] == max(scores[i] for i in containing)
    assert detection_at(detector_sample, (-9.0, -9.0)) == detection_at(detector_sample)


def test_kept_cells_are_transparent_and_flipped_with_the_image(detector_sample):
    tokens = detector_sample.recording.tokens

    figure = draw_kept_tokens(detector_sample)

    assert len(figure.axes) == 3 * 2  # levels, layers
    first = tokens.kept.kept[0, 0]
    rows, columns = tokens.kept.level_sizes[0]
    shade = figure.axes[0].images[-1]
    assert (shade.get_array()[..., 3] == 0).sum() == first[: rows * columns].sum()
    # Cells of 8 pixels of the input, from the right border of the image.
    left, right, bottom, top = shade.get_extent()
    assert (left, top) == pytest.approx((90, 0))
    assert (right, bottom) == pytest.approx((0, 60), abs=1e-4)
    share = first.float().mean()
    assert figure.axes[0].get_title() == f'layer 1: {share:.0%} kept'
    assert figure.axes[2].get_ylabel() == '6x9 cells'


def test_one_selection_for_all_layers_has_its_levels_in_a_row(detector_sample):
    tokens = detector_sample.recording.tokens
    same = tokens.kept._replace(kept=tokens.kept.kept[:, :1])
    tokens = tokens._replace(kept=same, objects=tokens.objects[:, :1])
    recording = replace(detector_sample.recording, tokens=tokens)

    figure = draw_kept_tokens(replace(detector_sample, recording=recording))

    share = same.kept[0, 0].float().mean()
    assert figure.axes[0].get_title() == f'all layers: {share:.0%} kept'
    grids = [axis.get_subplotspec().get_gridspec() for axis in figure.axes]
    assert {(grid.nrows, grid.ncols) for grid in grids} == {(1, 3)}


def test_object_tokens_are_among_the_kept_and_drawn_at_their_centers(
    detector_sample, read_panel
):
    tokens = detector_sample.recording.tokens
    assert (tokens.objects.sum(-1) == 30).all()
    assert not (tokens.objects & ~tokens.kept.kept).any()

    figure = draw_kept_tokens(detector_sample)

    found = [
        np.asarray(read_panel(axis).dots[0].get_offsets()) for axis in figure.axes[::2]
    ]
    expected = detector_sample.to_pixels(tokens.kept.centers[0][tokens.objects[0, 0]])
    assert np.concatenate(found) == pytest.approx(expected.numpy(), abs=1e-4)


def test_foreground_is_drawn_as_probability(detector_sample):
    scores = detector_sample.recording.tokens.scores[0].sigmoid()

    figure = draw_foreground_scores(detector_sample)

    *levels, bar = figure.axes
    assert bar.get_ylabel() == 'foreground probability'
    for axis, part in zip(levels, scores.split([12 * 17, 6 * 9, 3 * 5]), strict=True):
        opacity = np.asarray(axis.images[-1].get_array())[..., 3].flatten()
        assert opacity == pytest.approx(0.25 + 0.6 * part.numpy())


def test_a_focus_detr_has_a_figure_for_every_part(detector_sample, detector):
    point = choose_query_point(detector_sample, detector.backbone)

    names = [name for name, _ in draw_all(detector_sample, point, detector.backbone)]

    x1, y1, x2, y2 = detector_sample.boxes[0].tolist()
    assert point == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2))
    assert names == [
        'attention',
        'routed_regions',
        'foreground',
        'kept_tokens',
        'sampling_locations',
        'receptive_field',
    ]


def test_recorded_scores_selected_the_tokens(detector_sample):
    tokens = detector_sample.recording.tokens
    best = tokens.scores[0].topk(int(tokens.kept.kept[0, 0].sum())).indices

    assert tokens.kept.kept[0, 0, best].all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda state: state.pop('neck.convs.0.conv.weight'),
            'missing keys: neck.convs.0.conv.weight',
        ),
        (
            lambda state: state.update(extra=torch.zeros(1)),
            'does not fit the configuration; unexpected keys: extra',
        ),
        (
            lambda state: state.update(level_embed=torch.zeros(4, 256)),
            'size mismatch: level_embed',
        ),
        (
            lambda state: [state.pop(name) for name in list(state)[:30]],
            r'missing keys: .* and \d+ more',
        ),
    ],
    ids=['missing', 'unexpected', 'shape', 'many'],
)
def test_a_checkpoint_that_does_not_fit_raises(
    change, message, detector_cfg, detector, tmp_path
):
    state = dict(detector.state_dict())
    change(state)
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict=state), path)

    with pytest.raises(UsageError, match=message):
        load_model(detector_cfg, str(path))


def test_weights_are_those_of_the_checkpoint(detector_cfg, detector, tmp_path):
    path = tmp_path / 'same.pth'
    torch.save(dict(state_dict=detector.state_dict()), path)

    model = load_model(detector_cfg, str(path))

    assert not model.training
    for name, weight in detector.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
