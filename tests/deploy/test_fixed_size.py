"""Detection transformers with static shapes, and as ONNX files."""

from operator import itemgetter
from types import SimpleNamespace

import pytest
import torch
from exporting import assert_exports, make_images, operators, predict
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmdet.structures import DetDataSample
from tiny_detectors import build_model, detector_config, sparse_config
from torch import nn

from mmsparse.deploy.export import DetectorGraph, build_graph
from mmsparse.deploy.fixed_size import with_fixed_sizes
from mmsparse.errors import UsageError

SIZE = (76, 101)


def build(name, width=16, **changes):
    make = sparse_config if name == 'SparseDETR' else detector_config
    config = make(width=width, **changes)
    config['data_preprocessor'].update(
        mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], bgr_to_rgb=True
    )
    if name in ('FocusDETR', 'SparseDETR'):
        return build_model(config).eval()
    for option in ('cascade', 'num_object_tokens'):
        config.pop(option)
    config['type'] = name
    config['bbox_head']['type'] = f'{name}Head'
    config['bbox_head'].pop('loss_foreground')
    if name == 'DeformableDETR':
        config.pop('dn_cfg')
        config['decoder']['return_intermediate'] = True
    return build_model(config, std=0.8 / width**0.5).eval()


DETECTORS = {  # some modules of mmdet need 256 channels
    'Focus-DETR': dict(name='FocusDETR'),
    'Focus-DETR, current values': dict(
        name='FocusDETR',
        value_source='current',
        object_score='prob',
        per_image=True,
        global_pool='valid',
    ),
    'Sparse DETR': dict(name='SparseDETR'),
    'Deformable DETR': dict(
        name='DeformableDETR', as_two_stage=False, with_box_refine=False
    ),
    'Deformable DETR, refined': dict(name='DeformableDETR', as_two_stage=False),
    'Deformable DETR, two stages': dict(name='DeformableDETR', width=256),
    'DINO': dict(name='DINO', width=256),
}


@pytest.mark.parametrize('options', DETECTORS.values(), ids=DETECTORS.keys())
def test_detections_equal_mmdet(options):
    model = build(**options)
    graph = build_graph(model, SIZE)
    image = make_images(graph, 2)

    with torch.no_grad():
        boxes, scores, labels = graph(image.float())

    for i, sample in enumerate(predict(model, image, DetDataSample)):
        expected = sample.pred_instances
        torch.testing.assert_close(scores[i], expected.scores)
        torch.testing.assert_close(boxes[i], expected.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(labels[i], expected.labels)


@pytest.mark.parametrize(
    ('name', 'changes', 'sampler'),
    [
        ('Focus-DETR', dict(cascade=(0.7,)), 'grid_sample'),
        ('Deformable DETR, two stages', {}, 'gather'),
    ],
    ids=['Focus-DETR', 'Deformable DETR'],
)
def test_a_detector_exports(name, changes, sampler, tmp_path):
    small = dict(levels=3, encoder=1, decoder=1, **changes)

    graph = build_graph(build(**DETECTORS[name], **small), SIZE)

    assert_exports(graph, tmp_path / 'model.onnx', sampler=sampler)
    assert ('GridSample' in operators(tmp_path / 'model.onnx')) == ('grid' in sampler)


def test_a_detector_exports_with_the_plugin_of_tensorrt(tmp_path):
    onnx = pytest.importorskip('onnx')
    options = DETECTORS['Deformable DETR, refined']
    graph = build_graph(build(**options, levels=3, encoder=1, decoder=1), SIZE)
    path = tmp_path / 'model.onnx'

    assert_exports(graph, path, sampler='plugin')  # by its function in ONNX

    nodes = operators(path)
    assert 'GridSample' not in nodes
    model = onnx.load(path)
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    shapes = {
        value.name: [
            x.dim_param or x.dim_value for x in value.type.tensor_type.shape.dim
        ]
        for value in model.graph.value_info
    }
    for node in nodes['MultiscaleDeformableAttnPlugin_TRT']:
        attributes = {x.name: x.s.decode() for x in node.attribute}
        assert attributes == dict(plugin_version='2', plugin_namespace='')
        value, sizes, starts, points, weights = node.input
        sizes, starts = constants[sizes], constants[starts]
        assert sizes.dtype == starts.dtype == 'int32'
        assert starts.tolist() == [0, *sizes.prod(1).cumsum()[:-1]]
        batch, cells, heads, channels = shapes[value]
        assert (batch, cells) == ('batch', sizes.prod(1).sum())
        batch, queries, *grid = shapes[weights]
        assert grid[:2] == [heads, 3]
        assert shapes[points] == [batch, queries, *grid, 2]
        assert shapes[node.output[0]] == [batch, queries, heads, channels]
    assert len(nodes['MultiscaleDeformableAttnPlugin_TRT']) == 2  # encoder, decoder


def test_windows_of_swin_have_a_dynamic_batch_size():
    detector = build(name='DeformableDETR', as_two_stage=False)
    detector.backbone = ShiftWindowMSA(4, num_heads=1, window_size=4, shift_size=2)
    layer = with_fixed_sizes(detector).backbone
    x, size = torch.randn(2, 7 * 9, 4), (7, 9)
    shapes = ({0: torch.export.Dim('batch')}, (None, None))

    program = torch.export.export(layer, (x, size), dynamic_shapes=shapes)

    x = torch.randn(3, 7 * 9, 4)
    torch.testing.assert_close(program.module()(x, size), detector.backbone(x, size))


def test_another_detector_raises():
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


def test_detections_with_equal_scores_may_have_any_order():
    order = itemgetter((slice(None), [1, 0, 2]))

    assert compare(order, order, order) == dict(boxes=0, scores=0)


def test_detections_with_the_lowest_score_may_differ():
    found = compare(lambda x: x.where(x < 5, 0), torch.clone, torch.clone)

    assert found['boxes'] == 0


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ([lambda x: x + 1, torch.clone, torch.clone], dict(boxes=1 / 20, scores=0)),
        ([torch.clone, lambda x: x + 1e-5, torch.clone], dict(boxes=0, scores=1e-5)),
        ([torch.clone, torch.clone, lambda x: 3 - x], dict(boxes=1 / 20, scores=0)),
        ([torch.clone, torch.clone, lambda x: 0 * x], dict(boxes=torch.inf, scores=0)),
        ([torch.clone, lambda x: x * torch.nan, torch.clone], dict(scores=torch.inf)),
    ],
    ids=['boxes', 'scores', 'labels swapped', 'labels', 'NaN'],
)
def test_differences_are_measured(change, expected):
    found = compare(*change)

    for name, difference in expected.items():
        assert found[name] == pytest.approx(difference, rel=0.01)
