"""Detection transformers with fixed sizes, and as files of ONNX."""

from operator import itemgetter
from types import SimpleNamespace

import pytest
import torch
from exporting import assert_exports, make_pictures, predict
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmdet.structures import DetDataSample
from tiny_detectors import build_model, detector_config
from torch import nn

from mmsparse.deploy.export import DetectorGraph, build_graph
from mmsparse.deploy.fixed_size import with_fixed_sizes
from mmsparse.errors import UsageError

SIZE = (76, 101)


def build(kind, width=16, **changes):
    config = detector_config(width=width, **changes)
    config['data_preprocessor'].update(
        mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], bgr_to_rgb=True
    )
    if kind == 'FocusDETR':
        return build_model(config).eval()
    for name in ('cascade', 'num_object_tokens'):
        config.pop(name)
    config['type'] = kind
    config['bbox_head']['type'] = f'{kind}Head'
    config['bbox_head'].pop('loss_foreground')
    if kind == 'DeformableDETR':
        config.pop('dn_cfg')
        config['decoder']['return_intermediate'] = True
    return build_model(config, std=0.8 / width**0.5).eval()


DETECTORS = {  # some widths of 256 are written into mmdet
    'Focus-DETR': dict(kind='FocusDETR'),
    'Focus-DETR, current values': dict(
        kind='FocusDETR',
        value_source='current',
        object_score='prob',
        per_image=True,
        global_pool='valid',
    ),
    'Deformable DETR': dict(
        kind='DeformableDETR', as_two_stage=False, with_box_refine=False
    ),
    'Deformable DETR, refined': dict(kind='DeformableDETR', as_two_stage=False),
    'Deformable DETR, two stages': dict(kind='DeformableDETR', width=256),
    'DINO': dict(kind='DINO', width=256),
}


@pytest.mark.parametrize('options', DETECTORS.values(), ids=DETECTORS.keys())
def test_a_detector_tells_what_mmdet_tells(options):
    model = build(**options)
    graph = build_graph(model, SIZE)
    image = make_pictures(graph, 2)

    with torch.no_grad():
        boxes, scores, labels = graph(image.float())

    for i, sample in enumerate(predict(model, image, DetDataSample)):
        told = sample.pred_instances
        torch.testing.assert_close(scores[i], told.scores)
        torch.testing.assert_close(boxes[i], told.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(labels[i], told.labels)


@pytest.mark.parametrize('name', ['Focus-DETR', 'Deformable DETR, two stages'])
def test_a_detector_exports(name, tmp_path):
    few = dict(levels=3, encoder=2, decoder=1)

    graph = build_graph(build(**DETECTORS[name], **few), SIZE)

    assert_exports(graph, tmp_path / 'model.onnx')


def test_windows_of_swin_take_any_number_of_pictures():
    detector = build(kind='DeformableDETR', as_two_stage=False)
    detector.backbone = ShiftWindowMSA(4, num_heads=1, window_size=4, shift_size=2)
    layer = with_fixed_sizes(detector).backbone
    x, size = torch.randn(2, 7 * 9, 4), (7, 9)
    shapes = ({0: torch.export.Dim('batch')}, (None, None))

    program = torch.export.export(layer, (x, size), dynamic_shapes=shapes)

    x = torch.randn(3, 7 * 9, 4)
    torch.testing.assert_close(program.module()(x, size), detector.backbone(x, size))


def test_another_detector_is_refused():
    detector = nn.Module()
    detector.bbox_head = nn.Module()

    with pytest.raises(UsageError, match='must be Deformable DETR.*; got Module'):
        build_graph(detector, SIZE)


def compare(found_boxes, found_scores, found_labels):
    boxes = torch.tensor([[[0, 0, 4, 4], [1, 1, 3, 3], [5, 5, 8, 9.0]]])
    scores, labels = torch.tensor([[0.9, 0.9, 0.1]]), torch.tensor([[1, 2, 1]])
    graph = SimpleNamespace(size=(10, 20))
    found = (found_boxes(boxes), found_scores(scores), found_labels(labels))
    return DetectorGraph.differences(graph, (boxes, scores, labels), found)


def test_detections_of_one_score_come_in_any_order():
    order = itemgetter((slice(None), [1, 0, 2]))

    assert compare(order, order, order) == dict(boxes=0, scores=0)


def test_detections_with_the_last_score_may_be_others():
    told = compare(lambda x: x.where(x < 5, 0), torch.clone, torch.clone)

    assert told['boxes'] == 0


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ([lambda x: x + 1, torch.clone, torch.clone], dict(boxes=1 / 20, scores=0)),
        ([torch.clone, lambda x: x + 1e-5, torch.clone], dict(boxes=0, scores=1e-5)),
        ([torch.clone, torch.clone, lambda x: 3 - x], dict(boxes=1 / 20, scores=0)),
        ([torch.clone, torch.clone, lambda x: 0 * x], dict(boxes=torch.inf, scores=0)),
        ([torch.clone, lambda x: x * torch.nan, torch.clone], dict(scores=torch.inf)),
    ],
    ids=['boxes', 'scores', 'labels swapped', 'labels', 'no numbers'],
)
def test_what_differs_is_told(change, expected):
    told = compare(*change)

    for name, difference in expected.items():
        assert told[name] == pytest.approx(difference, rel=0.01)
