import json
import math

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from PIL import Image

from mmsparse.evaluation import ConfusionMatrix
from mmsparse.evaluation.confusion_matrix import match_boxes

CLASSES = ('cat', 'dog', 'cow')


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate samples; return the share of right classes, classes and counts."""

    def run(*samples, classes=CLASSES, **settings):
        metric = ConfusionMatrix(tmp_path / 'out' / 'confusion.png', **settings)
        metric.dataset_meta = dict(classes=classes)
        metric.process(None, [sample.to_dict() for sample in samples])
        metrics = metric.evaluate(len(samples))
        written = json.loads((tmp_path / 'out' / 'confusion.json').read_text())
        with Image.open(tmp_path / 'out' / 'confusion.png') as image:
            assert min(image.size) > 300
        return metrics['confusion_matrix/correct'], *written.values()

    return run


def test_images_are_counted_by_their_true_class(evaluate):
    pairs = [(0, 0), (0, 2), (0, 0), (2, 1)]

    correct, classes, counts = evaluate(
        *(
            DataSample().set_gt_label(true).set_pred_label(predicted)
            for true, predicted in pairs
        )
    )

    assert (correct, classes) == (0.5, list(CLASSES))
    assert counts == [[2, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_ignored_pixels_do_not_count(evaluate):
    def sample(true, predicted):
        true, predicted = (torch.tensor(x)[None] for x in (true, predicted))
        return SegDataSample(
            gt_sem_seg=PixelData(data=true), pred_sem_seg=PixelData(data=predicted)
        )

    correct, classes, counts = evaluate(
        sample([[0, 255], [2, 2]], [[0, 1], [2, 1]]), sample([[1, 255]], [[1, 0]])
    )

    assert correct == 3 / 4
    assert classes == list(CLASSES)
    assert counts == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def boxes(true, predicted, ignored=()):
    """Return a sample; boxes are (x1, y1, x2, y2, label) and, predicted, a score."""

    def instances(rows, **fields):
        rows = torch.tensor(rows).reshape(-1, 5 + len(fields))
        for name, value in zip(fields, rows[:, 5:].T, strict=True):
            fields[name] = value
        return InstanceData(labels=rows[:, 4].long(), **fields), rows[:, :4]

    sample = DetDataSample()
    for name, rows in (('gt_instances', true), ('ignored_instances', ignored)):
        found, corners = instances(rows)
        found.bboxes = HorizontalBoxes(corners)
        sample.set_field(found, name)
    found, corners = instances(predicted, scores=None)
    found.bboxes = corners
    sample.pred_instances = found
    return sample


CAT, DOG = (0, 0, 10, 10, 0), (20, 0, 30, 10, 1)


def test_boxes_without_match_are_confused_with_the_background(evaluate):
    sample = boxes(
        [CAT, DOG, (0, 20, 9, 29, 2)],
        [
            (*CAT, 0.9),  # right
            (1, 0, 11, 10, 0, 0.8),  # the cat is taken
            (20, 0, 30, 9, 2, 0.7),  # cow instead of dog
            (50, 50, 60, 60, 1, 0.6),  # nothing there
            (0, 20, 9, 29, 2, 0.2),  # right, but below score_thr: the cow is missed
        ],
    )

    correct, classes, counts = evaluate(sample)

    assert correct == pytest.approx(1 / 3)
    assert classes == [*CLASSES, 'background']
    assert counts == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]]


def test_thresholds_are_settings(evaluate):
    sample = boxes([CAT], [(0, 0, 10, 6, 0, 0.2)])

    assert evaluate(sample)[0] == 0
    assert evaluate(sample, score_thr=0.1)[0] == 1
    assert evaluate(sample, score_thr=0.1, iou_thr=0.7)[0] == 0


def test_predictions_on_crowds_do_not_count(evaluate):
    crowd = (40, 40, 60, 60, 0)

    _, classes, counts = evaluate(
        boxes([CAT], [(*CAT, 0.9), (*crowd, 0.9)], ignored=[crowd])
    )

    assert classes == list(CLASSES)
    assert counts == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ('true', 'predicted', 'expected'),
    [([], [], None), ([CAT], [], (0, 3)), ([], [(*DOG, 0.9)], (3, 1))],
)
def test_images_without_boxes(true, predicted, expected, evaluate):
    correct, _, counts = evaluate(boxes(true, predicted))

    assert sum(map(sum, counts)) == (expected is not None)
    if expected:
        assert counts[expected[0]][expected[1]] == 1
    assert correct == 0 or math.isnan(correct)


def test_each_true_box_matches_once_and_the_best_score_comes_first():
    ious = torch.tensor([[0.6, 0.7], [0.8, 0.9], [0.4, 0.3]])

    assert match_boxes(ious, 0.5).tolist() == [1, 0, -1]
    assert match_boxes(ious, 0.35).tolist() == [1, 0, -1]
    assert match_boxes(ious[:, :0], 0.5).tolist() == [-1, -1, -1]
    assert ious[1, 1] == torch.tensor(0.9)


def test_many_classes_are_drawn(evaluate):
    classes = [f'class {i}' for i in range(40)]

    correct, *_ = evaluate(
        DataSample().set_gt_label(3).set_pred_label(3), classes=classes
    )

    assert correct == 1


def test_other_samples_are_refused(evaluate):
    sample = DetDataSample(metainfo=dict(img_id=1))

    with pytest.raises(ValueError, match=r'must have pred_label, .* got \[.img_id.\]'):
        evaluate(sample)
