"""Several models on the same image, next to each other."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmsparse.errors import UsageError
from mmsparse.models.layers.attention_map import AttentionMap, key_centers
from mmsparse.visualization import ImageTransform, list_comparisons, panels
from mmsparse.visualization.comparison import _density
from mmsparse.visualization.panels import SHADE

IDENTITY = ImageTransform((96, 128), (96, 128))


def test_backbones_have_a_row_each(record_backbone):
    samples = {name: record_backbone(name, IDENTITY)[1] for name in ('dat', 'shunted')}
    samples['shunted'].caption = 'cat (0.90)'

    comparisons = list_comparisons(samples)
    *panels, bar = comparisons['attention']((40, 30)).axes

    assert list(comparisons) == ['attention']
    assert [x.get_ylabel() for x in panels] == ['dat', '', 'shunted\ncat (0.90)', '']
    assert [x.get_title().partition(':')[0] for x in panels[2:]] == [
        'stage 1, block 1',
        'stage 2, block 2',
    ]
    assert bar.get_ylabel() == 'attention, relative to the largest of a panel'


def test_attention_to_large_keys_is_divided_among_their_cells():
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0]).view(1, 1, 1, 4)
    keys = key_centers((2, 2), weights, extent=(2, 3))[None]
    found = AttentionMap('', weights, torch.arange(4).view(1, 1, 4), keys, (2, 3))

    density = _density(found, (4, 7))

    assert density.sum() == pytest.approx(1)
    assert torch.equal(density[:2, :3], torch.full((2, 3), 0.5 / 6))
    assert torch.equal(density[2:, 3:], torch.zeros(2, 4))


def test_detectors_are_compared_by_tokens_and_queries(detector_sample):
    comparisons = list_comparisons(dict(a=detector_sample, b=detector_sample))
    assert list(comparisons) == ['attention', 'kept_tokens', 'queries']

    tokens = comparisons['kept_tokens']((40, 30))
    queries = comparisons['queries']((40, 30))

    kept = detector_sample.recording.tokens.kept.kept[0].float().mean(0)
    opacity = np.asarray(tokens.axes[0].images[-1].get_array())[..., 3].flatten()
    assert opacity == pytest.approx(SHADE * (1 - kept[: opacity.size].numpy()))
    assert [x.get_title() for x in queries.axes] == ['a', 'b']
    assert len(queries.axes[0].collections) == 5  # dots of the best detections


def test_long_names_of_models_are_wrapped_and_not_cut_off(detector_sample):
    name = 'deformable-detr-refine-twostage shunted-nano\nrandom weights'
    comparisons = list_comparisons(
        {name: detector_sample, f'{name} 2': detector_sample}
    )

    for drawing, titles in (
        ('queries', lambda axis: axis.title),
        ('kept_tokens', lambda axis: axis.yaxis.label),
    ):
        figure = comparisons[drawing]((40, 30))
        FigureCanvasAgg(figure).draw()
        named = [
            titles(axis) for axis in figure.axes if 'weights' in titles(axis).get_text()
        ]
        first, second = (title.get_window_extent() for title in named)
        for box in (first, second):
            assert min(box.x0, box.y0) >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1
        assert not first.overlaps(second)


def test_titles_of_narrow_panels_are_not_broken_within_words():
    axis = Figure((0.9, 1)).subplots()

    panels.set_title(axis, 'stage 3: 64 keys')

    assert axis.get_title() == 'stage 3: 64\nkeys'


def test_models_without_common_parts_raise(record_backbone):
    _, sample = record_backbone('dat', IDENTITY)
    other = sample.without_predictions()
    other.recording = type(sample.recording)(tokens='some')

    message = 'must both have .*; a has attention; b has kept tokens'
    with pytest.raises(UsageError, match=message):
        list_comparisons(dict(a=sample, b=other))


def test_masks_and_classes_are_drawn(record_backbone):
    _, sample = record_backbone('dat', IDENTITY)
    sample.masks = torch.zeros(1, 96, 128, dtype=torch.bool)
    sample.masks[0, :10, :20] = True
    sample.boxes, sample.labels = torch.tensor([[0.0, 0, 20, 10]]), ['cat (0.90)']
    sample.seg_map = np.zeros((96, 128), int)
    sample.seg_map[50:] = 1
    sample.class_names = ['sky', 'sea']

    figure = list_comparisons(dict(a=sample, b=sample))['attention']((40, 30))

    first = figure.axes[0]
    opacity = np.asarray(first.images[1].get_array())[..., 3]
    assert (opacity[:10, :20] > 0).all() and (opacity > 0).sum() == 200
    assert [x.get_text() for x in first.texts] == ['cat (0.90)', 'sky', 'sea']
