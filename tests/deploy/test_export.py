"""Exported models equal mmpretrain, mmseg and onnxruntime, at small sizes."""

import importlib
import sys
from functools import partial
from pathlib import Path

from _cli import run as run_command

import export_onnx as command
import pytest
import torch
from exporting import assert_exports, make_images, operators, predict
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from tiny_backbones import ARCHS
from torch import nn

from mmsparse.apis import build_model, read_config, register_host
from mmsparse.deploy.export import (
    build_graph,
    compare_onnx,
    export_onnx,
    export_program,
)
from mmsparse.deploy.runtimes import installed_runtimes, load_session
from mmsparse.errors import UsageError
from mmsparse.models import (
    AgentAttention2d,
    BiLevelRoutingAttention,
    DeformableAttention2d,
    LinearSpatialReductionAttention2d,
    WindowAttention2d,
)

ROOT = Path(__file__).parents[2]

SIZE = (52, 75)  # not a multiple of strides, windows or regions
STATISTICS = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])


MICRO = dict(
    embed_dims=(16, 32),
    depths=(1, 1),
    num_heads=(2, 2),
    mlp_ratios=(2, 2),
    sr_ratios=(4, 1),
)


def nano(name):
    return dict(type=f'mmsparse.{name}', arch='nano')


def build(scope, **config):
    register_host(scope)
    models = importlib.import_module(f'{scope}.registry').MODELS
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = models.build(ConfigDict(config)).eval()
    for parameter in model.parameters():  # including biases and tables
        nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return model


def build_classifier(backbone, width, **preprocessor):
    return build(
        'mmpretrain',
        type='ImageClassifier',
        data_preprocessor={**STATISTICS, **preprocessor},
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=width),
    )


def build_segmentor(**preprocessor):
    return build(
        'mmseg',
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', **{**STATISTICS, **preprocessor}
        ),
        backbone=dict(
            type='mmsparse.ShuntedTransformer', arch=MICRO, out_indices=(0, 1)
        ),
        neck=dict(type='FPN', in_channels=[16, 32], out_channels=16, num_outs=2),
        decode_head=dict(
            type='FPNHead',
            in_channels=[16] * 2,
            in_index=[0, 1],
            feature_strides=[4, 8],
            channels=16,
            num_classes=5,
            norm_cfg=dict(type='BN'),
            align_corners=False,
        ),
        test_cfg=dict(mode='whole'),
    )


class OtherAttention(nn.Module):
    """The attention layers that none of the exported backbones has."""

    def __init__(self):
        super().__init__()
        v2022 = partial(DeformableAttention2d, 16, 2, 2, 2, formulation='v2022')
        v2023 = partial(DeformableAttention2d, 16, 2, 2, 2, formulation='v2023')
        routed = partial(BiLevelRoutingAttention, 16, 2, regions_per_side=3)
        self.stem = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.layers = nn.ModuleList(
            [
                WindowAttention2d(16, 2, window_size=4, shift=2),
                LinearSpatialReductionAttention2d(16, 2),
                AgentAttention2d(16, 2, num_agents=9),
                v2022(offset_range=2, bias='fixed'),
                v2022(offset_range=0, bias='log_cpb'),
                v2023(use_offsets=False),
                routed(topk=4, padding='tokens'),
                routed(topk=3, routing='soft', kv_pool=('avg', 2)),
            ]
        )

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return (x,)


def test_other_attention_layers_export(tmp_path):
    model = build_classifier(dict(type=OtherAttention), 16, to_rgb=True)

    assert_exports(build_graph(model, SIZE), tmp_path / 'model.onnx')


# Shunted Transformer is in the segmentor, and DAT of 2022 has a dynamic size below.
@pytest.mark.parametrize(
    ('name', 'changes', 'sampler'),
    [
        ('dat-2023', dict(depths=1, block_types=('N', 'D'), pos_kernels=3), 'gather'),
        ('biformer', {}, 'grid_sample'),
    ],
)
def test_a_classifier_exports(name, changes, sampler, tmp_path):
    model = build_small(name, stages=2, to_rgb=False, **changes)
    graph = build_graph(model, SIZE)

    assert_exports(graph, tmp_path / 'model.onnx', sampler=sampler)

    assert 'GridSample' not in operators(tmp_path / 'model.onnx')


def build_micro():
    """Build a classifier with the first stage of the smallest Shunted Transformer."""
    backbone = dict(type='mmsparse.ShuntedTransformer', arch=MICRO, out_indices=(0,))
    return build_classifier(backbone, width=16, to_rgb=True)


def build_small(name, stages=1, to_rgb=True, **changes):
    """Build a classifier with the first stages of one of the tiny backbones."""
    backbone, arch = ARCHS[name]
    config = dict(
        type=f'mmsparse.{backbone.__name__}',
        arch=arch | changes,
        out_indices=(stages - 1,),
    )
    return build_classifier(config, width=16 * stages, to_rgb=to_rgb)


@pytest.mark.parametrize(
    ('name', 'changes'),
    [('shunted', {}), ('dat-2022', dict(block_types='LD'))],
    ids=['shunted', 'dat'],
)
def test_height_and_width_of_a_classifier_may_be_dynamic(name, changes, tmp_path):
    graph = build_graph(build_small(name, **changes), (64, 80))
    path = tmp_path / 'model.onnx'

    export_onnx(graph, path, dynamic=('height', 'width'))

    for runtime in installed_runtimes():
        assert compare_onnx(graph, path, runtime)['logits'] < 1e-4
    model = importlib.import_module('onnx').load(path)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [x.dim_param or x.dim_value for x in shape] == [1, 3, 'height', 'width']


def test_an_unknown_axis_raises():
    graph = build_graph(build_micro(), (64, 96))

    with pytest.raises(UsageError, match=r"must be of \('batch', .*; got \['depth'\]"):
        export_program(graph, dynamic=['depth'])


def test_a_program_for_one_size_raises():
    arch = dict(block_types='D', position_biases='fixed', depths=1, img_size=64)
    graph = build_graph(build_small('dat-2023', **arch), (64, 64))

    message = r'shape must be larger for .*Guard failed.*\); got 64 64'
    with pytest.raises(UsageError, match=message):
        export_program(graph, dynamic=['height', 'width'])


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (build_segmentor, 'EncoderDecoder with ShuntedTransformer: mmseg records'),
        (partial(build_small, 'biformer'), 'ImageClassifier with BiFormer: of class'),
    ],
    ids=['segmentor', 'biformer'],
)
def test_a_model_that_depends_on_the_size_raises(build, message):
    graph = build_graph(build(), (64, 96))

    with pytest.raises(UsageError, match=message):
        export_program(graph, dynamic=['batch', 'width'])


def test_the_plugin_needs_multi_scale_deformable_attention():
    graph = build_graph(build_micro(), (64, 96))

    with pytest.raises(UsageError, match='this ImageClassifier does not have; use ga'):
        export_program(graph, sampler='plugin')


class Sampling(nn.Module):
    """GridSample alone."""

    def forward(self, x):
        x = nn.functional.avg_pool2d(x, 8)
        points = x[:, :2].permute(0, 2, 3, 1)
        return (nn.functional.grid_sample(x, points, align_corners=False),)


@pytest.mark.parametrize(
    ('opset', 'mode', 'runtimes'),
    [
        (18, 'bilinear', ['TensorRT 10.14 to 11.1']),
        (20, 'linear', ['TensorRT 10.14 to 11.1', 'TensorRT up to 11.1']),
    ],
)
def test_runtimes_with_a_wrong_grid_sample_are_named(
    opset, mode, runtimes, tmp_path, caplog
):
    graph = build_graph(build_classifier(dict(type=Sampling), 3, to_rgb=True), SIZE)
    path = tmp_path / 'model.onnx'

    with caplog.at_level('WARNING', logger='mmengine'):
        assert_exports(graph, path, opset=opset, simplify=True)

    (node,) = operators(path)['GridSample']
    modes = [x.s.decode() for x in node.attribute if x.name == 'mode']
    assert modes == [mode]
    metadata = importlib.import_module('onnx').load(path).metadata_props
    notes = {item.key: item.value for item in metadata}['mmsparse.notes']
    assert all(name in notes for name in runtimes)
    assert notes.count('NVIDIA/TensorRT issue') == len(runtimes)


@pytest.mark.parametrize('in_channels', [1, 4])
@pytest.mark.parametrize('to_rgb', [True, False])
def test_images_have_the_channels_of_the_backbone(in_channels, to_rgb, tmp_path):
    model = build_classifier(
        dict(
            type='mmsparse.ShuntedTransformer',
            arch=MICRO,
            out_indices=(0,),
            in_channels=in_channels,
        ),
        width=16,
        to_rgb=to_rgb,
        mean=[100.0 + i for i in range(in_channels)],
        std=[50.0 + i for i in range(in_channels)],
    )
    graph = build_graph(model, SIZE)
    image = make_images(graph, 2)

    (logits,) = graph(image.float())

    # Of four channels, mmpretrain swaps none.
    samples = predict(model, image, DataSample, to_bgr=False)
    expected = torch.stack([sample.pred_score for sample in samples])
    torch.testing.assert_close(logits.softmax(-1), expected)
    if in_channels == 4 and not to_rgb:
        assert_exports(graph, tmp_path / 'model.onnx')


def test_a_segmentor_exports(tmp_path):
    graph = build_graph(build_segmentor(bgr_to_rgb=True), SIZE)

    assert_exports(graph, tmp_path / 'model.onnx')


@pytest.mark.parametrize('to_rgb', [True, False])
def test_scores_of_a_classifier_equal_mmpretrain(to_rgb):
    model = build_classifier(nano('ShuntedTransformer'), 256, to_rgb=to_rgb)
    graph = build_graph(model, (64, 64))
    image = make_images(graph, 2)

    (logits,) = graph(image.float())

    samples = predict(model, image, DataSample)
    expected = torch.stack([sample.pred_score for sample in samples])
    torch.testing.assert_close(logits.softmax(-1), expected)
    assert expected.std(0).max() > 1e-3  # scores depend on the image


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_logits_of_a_segmentor_equal_mmseg(bgr_to_rgb):
    model = build_segmentor(bgr_to_rgb=bgr_to_rgb)
    graph = build_graph(model, SIZE)
    image = make_images(graph, 2)

    (logits,) = graph(image.float())

    samples = predict(model, image, SegDataSample)
    expected = torch.stack([sample.seg_logits.data for sample in samples])
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    'padding', [dict(size=(64, 64)), dict(size_divisor=32)], ids=['size', 'divisor']
)
def test_a_shape_that_would_be_padded_raises(padding):
    model = build_segmentor(test_cfg=padding)

    with pytest.raises(UsageError, match='not be padded .*; it pads 52 50 to 64 64'):
        build_graph(model, (52, 50))
    build_graph(model, (64, 64))


def test_an_unsupported_model_raises():
    model = build('mmpretrain', type='ImageClassifier', backbone=nano('BiFormer'))

    with pytest.raises(UsageError, match='must be a classifier.*; got ImageClassifier'):
        build_graph(model, SIZE)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in a folder with a checkpoint of one stage."""
    base = 'configs/shunted_transformer/shunted-nano_1xb32-14e_digits.py'
    (tmp_path / 'micro.py').write_text(
        f"_base_ = '{ROOT / base}'\n"
        f'model = dict(backbone=dict(arch=dict(_delete_=True, **{MICRO}), '
        'out_indices=(0,)), head=dict(in_channels=16))\n'
    )
    monkeypatch.chdir(tmp_path)
    torch.save(build_model(read_config('micro.py')).state_dict(), 'micro.pth')

    def run_here(checkpoint, *arguments):
        arguments = ['export_onnx.py', 'micro.py', checkpoint, *map(str, arguments)]
        monkeypatch.setattr('sys.argv', arguments)
        run_command(command.main, OSError, ValueError)

    return run_here


def test_the_command_writes_a_file_and_compares_it(run, capsys):
    with pytest.raises(SystemExit) as end:
        run('micro.pth', '--shape', 64, 64, '--opset', 20)
    assert not end.value.code

    written, *compared = capsys.readouterr().out.splitlines()
    session = importlib.import_module('onnxruntime').InferenceSession(written)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ('image', ['batch', 3, 64, 64])
    assert (logits.name, logits.shape) == ('logits', ['batch', 10])
    assert written == 'work_dirs/export/micro.onnx'
    content = Path(written).read_bytes()
    assert len(content) > Path('micro.pth').stat().st_size / 2  # weights included
    stack_traces = bytes(ROOT), b'site-packages'
    assert not any(path in content for path in stack_traces)
    assert compared[0].startswith('onnxruntime: logits differ from PyTorch by at most ')
    assert [line.partition(':')[0] for line in compared] == [*installed_runtimes()]


def test_the_command_fails_if_the_file_differs(run, monkeypatch):
    monkeypatch.setattr(command, 'export_onnx', lambda *arguments: None)
    monkeypatch.setattr(command, 'compare_onnx', lambda *arguments: dict(logits=2e-4))

    with pytest.raises(SystemExit, match=r'differs from PyTorch by more than 0\.0001'):
        run('micro.pth')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['micro.pth', '--shape', 0, 64],
            'error: --shape must be two positive numbers',
        ),
        (['other.pth'], 'error: no such file: other.pth'),
    ],
    ids=['shape', 'file'],
)
def test_a_mistake_is_one_line(arguments, message, run):
    with pytest.raises(SystemExit, match=message):
        run(*arguments)


@pytest.mark.parametrize('opset', [15, 99])
def test_an_unsupported_opset_raises_and_leaves_no_file(opset, tmp_path):
    graph = build_graph(build_classifier(dict(type=Sampling), 3, to_rgb=True), SIZE)

    with pytest.raises(UsageError, match=rf'opset {opset} is not supported .* 18 to '):
        export_onnx(graph, tmp_path / 'model.onnx', opset)

    assert not list(tmp_path.iterdir())


def test_an_output_path_that_cannot_be_written_is_an_error(run):
    Path('work_dirs').mkdir()

    with pytest.raises(SystemExit, match=r'error: --out must be a file; work_dirs is'):
        run('micro.pth', '--shape', 64, 64, '--out', 'work_dirs')
    with pytest.raises(SystemExit, match=r"error: .*exists: 'micro\.pth'"):
        run('micro.pth', '--shape', 64, 64, '--out', 'micro.pth/a.onnx')


def test_an_unknown_runtime_raises():
    with pytest.raises(UsageError, match=r"one of \('onnxruntime', .*; got 'tensorrt'"):
        load_session(b'', 'tensorrt')


def test_a_missing_runtime_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)

    with pytest.raises(UsageError, match=r'openvino is needed .*mmsparse\[export\]'):
        load_session(b'', 'openvino')


def test_without_a_check_no_runtime_runs(run, monkeypatch, capsys):
    monkeypatch.setattr(command, 'export_onnx', lambda *arguments: None)

    with pytest.raises(SystemExit) as end:
        run('micro.pth', '--check')

    assert not end.value.code
    assert 'not compared with PyTorch' in capsys.readouterr().out


def test_a_missing_dependency_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript.optimizer', None)

    with pytest.raises(SystemExit, match=r'onnxscript is needed .*mmsparse\[export\]'):
        run('micro.pth', '--shape', 64, 64)
