"""Drawings of a Focus-DETR of random weights, on a resized and mirrored picture."""

import numpy as np
import pytest
import torch
from mmsparse.visualization.detections import detection_at

from mmsparse.apis import load_model
from mmsparse.errors import UsageError
from mmsparse.visualization import (
    choose_point,
    draw_all,
    draw_foreground,
    draw_kept_tokens,
    draw_sampling_points,
)

SIZE = (60, 90)  # height and width of the picture; enlarged by 1.5


def test_the_picture_is_enlarged_and_mirrored_for_the_model(detector_scene):
    assert detector_scene.frame.picture == SIZE
    assert detector_scene.frame.size == (90, 135)
    assert detector_scene.frame.scale == (-1.5, 1.5)


def test_the_hosts_boxes_and_those_of_the_queries_agree(detector_scene):
    scores, _, boxes = detector_scene.detections()
    height, width = SIZE
    ends = boxes.new_tensor([width, height] * 2)
    cut = boxes.clamp(min=torch.zeros(4), max=ends)

    best = scores.argmax()

    assert len(detector_scene.boxes) == 50
    torch.testing.assert_close(detector_scene.boxes[0], cut[best], atol=1e-2, rtol=0)


def test_points_lie_in_the_middle_of_the_box_they_are_sampled_for(
    detector_scene, drawn
):
    _, _, boxes = detector_scene.detections()
    query = detection_at(detector_scene)
    center = (boxes[query, :2] + boxes[query, 2:]) / 2

    figure = draw_sampling_points(detector_scene)

    assert len(figure.axes) == 2  # layers
    for axis in figure.axes:
        of = drawn(axis)
        box = of.boxes[-1]
        assert box == pytest.approx(boxes[query].tolist(), abs=1e-3)
        assert len(of.dots) == 3  # levels
        for dots in of.dots:
            places = np.asarray(dots.get_offsets())
            assert places == pytest.approx(
                np.tile(center.numpy(), (len(places), 1)), abs=1e-2
            )


def test_the_detection_at_a_point_is_the_surest_that_holds_it(detector_scene):
    scores, _, boxes = detector_scene.detections()
    last = scores.argmin()
    point = ((boxes[last, :2] + boxes[last, 2:]) / 2).tolist()
    holding = [
        i
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())
        if x1 <= point[0] < x2 and y1 <= point[1] < y2
    ]

    chosen = detection_at(detector_scene, tuple(point))

    assert chosen in holding
    assert scores[chosen] == max(scores[i] for i in holding)
    assert detection_at(detector_scene, (-9.0, -9.0)) == detection_at(detector_scene)


def test_kept_cells_are_light_and_mirrored_with_the_picture(detector_scene):
    tokens = detector_scene.seen.tokens

    figure = draw_kept_tokens(detector_scene)

    assert len(figure.axes) == 3 * 2  # levels, layers
    first = tokens.kept.kept[0, 0]
    rows, columns = tokens.kept.level_sizes[0]
    shade = figure.axes[0].images[-1]
    assert (shade.get_array()[..., 3] == 0).sum() == first[: rows * columns].sum()
    # Cells of 8 pixels of the input, from the right border of the picture.
    left, right, bottom, top = shade.get_extent()
    assert (left, top) == pytest.approx((90, 0))
    assert (right, bottom) == pytest.approx((0, 60), abs=1e-4)
    share = first.float().mean()
    assert figure.axes[0].get_title() == f'layer 1: {share:.0%} kept'
    assert figure.axes[2].get_ylabel() == '6x9 cells'


def test_object_tokens_are_among_the_kept_and_drawn_at_their_centers(
    detector_scene, drawn
):
    tokens = detector_scene.seen.tokens
    assert (tokens.objects.sum(-1) == 30).all()
    assert not (tokens.objects & ~tokens.kept.kept).any()

    figure = draw_kept_tokens(detector_scene)

    found = [np.asarray(drawn(axis).dots[0].get_offsets()) for axis in figure.axes[::2]]
    expected = detector_scene.to_pixels(tokens.kept.centers[0][tokens.objects[0, 0]])
    assert np.concatenate(found) == pytest.approx(expected.numpy(), abs=1e-4)


def test_foreground_is_drawn_as_probability(detector_scene):
    scores = detector_scene.seen.tokens.scores[0].sigmoid()

    figure = draw_foreground(detector_scene)

    for axis, part in zip(
        figure.axes, scores.split([12 * 17, 6 * 9, 3 * 5]), strict=True
    ):
        image = axis.images[-1]
        shown = np.asarray(image.get_array()).flatten()
        assert shown == pytest.approx(part.numpy())
        assert image.get_clim() == (0, 1)


def test_all_there_is_to_see_of_a_focus_detr_is_drawn(detector_scene, detector):
    point = choose_point(detector_scene, detector.backbone)

    names = [name for name, _ in draw_all(detector_scene, point, detector.backbone)]

    x1, y1, x2, y2 = detector_scene.boxes[0].tolist()
    assert point == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2))
    assert names == ['attention', 'regions', 'foreground', 'kept', 'sampling', 'field']


def test_scores_are_those_that_selected_the_tokens(detector_scene):
    tokens = detector_scene.seen.tokens
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
            lambda state: [state.pop(name) for name in list(state)[:15]],
            'missing keys: .* and 3 more',
        ),
    ],
    ids=['missing', 'unexpected', 'shape', 'many'],
)
def test_a_checkpoint_that_does_not_fit_is_told(
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
