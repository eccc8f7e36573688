import copy

import numpy as np
import pytest
import torch
from mmdet.evaluation.metrics import CocoPanopticMetric, coco_panoptic_metric
from mmengine.registry import METRICS, DefaultScope
from mmengine.structures import PixelData
from tiny_panoptic import METAINFO, write_panoptic_data

from mmsparse.datasets.panoptic import segment_ids
from mmsparse.errors import UsageError
from mmsparse.evaluation.panoptic_quality import average_quality, count_segments

LABELS = {1: 0, 2: 1, 3: 1, 70000: 2, 300: 3}
NO_CLASS = 4


@pytest.fixture
def root(tmp_path):
    return write_panoptic_data(tmp_path / 'data', images=3)


def settings(root):
    return dict(ann_file=str(root / 'panoptic.json'), seg_prefix=str(root / 'segments'))


def evaluate(metric, root, change=lambda segments: segments):
    """Evaluate the true segments after a change of them."""
    metric.dataset_meta = METAINFO
    for i in (1, 2, 3):
        ids = segment_ids((root / f'segments/{i}.png').read_bytes())
        values = {n: label + 1000 * n * (label < 2) for n, label in LABELS.items()}
        segments = torch.from_numpy(np.vectorize(values.get)(ids))
        predicted = PixelData(sem_seg=change(segments)[None].int())
        sample = dict(
            img_id=i,
            img_path=f'{i}.jpg',
            ori_shape=ids.shape,
            pred_panoptic_seg=predicted.to_dict(),
        )
        metric.process({}, [copy.deepcopy(sample)])
    return metric.evaluate(3)


def build(root, **options):
    config = dict(settings(root), type='mmsparse.PanopticQuality', **options)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return METRICS.build(config)


def test_a_perfect_prediction_has_a_quality_of_100(root):
    found = evaluate(build(root, classwise=True), root)

    assert len(found) == 9
    assert {round(x, 6) for x in found.values()} == {100}


def damage(segments):
    """Shift segments, exchange some classes and remove some."""
    segments = segments.roll(int(segments.sum()) % 7, 1)
    segments[20:30] = segments[20:30].flip(1)
    segments[segments == 3001] = NO_CLASS
    segments[:10, :20] = 5001
    return segments


@pytest.mark.skipif(
    coco_panoptic_metric.panopticapi is None, reason='panopticapi is not installed'
)
@pytest.mark.parametrize(
    'change', [damage, lambda x: x.roll(4, 0)], ids=['all', 'shift']
)
def test_the_results_are_those_of_mmdet(root, change):
    found = evaluate(build(root), root, change)

    expected = evaluate(CocoPanopticMetric(**settings(root)), root, change)
    assert found == pytest.approx(expected)
    assert 0 < found['coco_panoptic/PQ'] < 100


def test_an_image_that_is_not_in_the_file_is_named(root):
    metric = build(root)
    metric.dataset_meta = METAINFO

    with pytest.raises(
        UsageError, match='panoptic.json has no .* image with id 9; set'
    ):
        metric.process({}, [dict(img_id=9)])


def row(*parts):
    """A strip of pixels from (value, width) pairs."""
    return np.concatenate([np.full((1, width), value) for value, width in parts], 1)


def test_segments_match_above_half_of_their_union():
    ids = row((7, 10), (8, 10), (0, 4))
    predicted = row((1000, 6), (1001, 5), (2000, 9), (1001, 4))
    labels = {7: 0, 8: 0}

    counts = count_segments(ids, labels, set(), predicted, num_classes=2)

    # 6 of 10 pixels match, and 9 of 10: void does not count. The other has no match.
    assert counts[0].tolist() == [pytest.approx(0.6 + 0.9), 2, 0, 0]
    assert counts[1].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ('ignored', 'mistakes'), [(dict(crowds={7}), 0), (dict(labels={}), 0), ({}, 1)]
)
def test_a_prediction_in_a_crowd_or_in_void_is_no_mistake(ignored, mistakes):
    ids = row((7, 20))
    predicted = row((1000, 4), (1, 16))
    arguments = dict(labels={7: 0}, crowds=set()) | ignored

    counts = count_segments(ids, predicted=predicted, num_classes=2, **arguments)

    assert counts[0].tolist() == [0, 0, mistakes, mistakes]
    assert counts[1, 2] == bool(arguments['labels'])  # of another class than the crowd


def test_the_average_is_over_classes_that_occur():
    counts = np.array([[1.6, 2, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1.0]])

    found = average_quality(counts)

    assert found == dict(
        pq=pytest.approx(1.6 / 3 / 2),
        sq=pytest.approx(0.4),
        rq=pytest.approx(1 / 3),
        n=2,
    )
    assert np.isnan(average_quality(counts[1:2])['pq'])
