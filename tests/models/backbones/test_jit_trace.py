"""Backbones that ``torch.jit.trace`` recorded."""

import inspect
import re

import pytest
import test_contract
import torch

from mmsparse.models import DAT, BiFormer

# Tracing warns of every size that becomes a constant.
pytestmark = pytest.mark.filterwarnings('ignore')

SIZE = (65, 93)
SMALL = dict(embed_dims=(16, 32), depths=1, num_heads=2)
PATCHES = dict(downsampling='patches', window_sizes=4)


def small(family, arch):
    arch = dict(base=arch) if isinstance(arch, str) else arch
    return test_contract.builder(family, {**arch, 'depths': (1, 1, 1, 1)})


def dat(formulation='v2023', block_types='D', **changes):
    arch = {**SMALL, **changes, 'formulation': formulation, 'block_types': block_types}
    return lambda: DAT(arch, out_indices=(0, 1), with_cp=True)


def biformer(block_types='routing', topks=2, **changes):
    arch = {**SMALL, **changes, 'block_types': block_types, 'topks': topks}
    return lambda: BiFormer(arch, out_indices=(0, 1))


BUILDERS = {
    **{name: small(*x) for name, x in test_contract.cases().items()},
    **{f'dat-{x}': dat(block_types=x) for x in 'NM'},
    **{
        f'dat-{bias}': dat(position_biases=bias)
        for bias in ('table', 'fixed', 'log_cpb', 'depthwise', 'none')
    },
    'dat-2022': dat('v2022', block_types='LSD', depths=3, **PATCHES),
    'dat-no-offsets': dat(use_offsets=False),
    'biformer-soft': biformer(attn_cfgs=dict(routing='soft')),
    'biformer-conv': biformer(block_types='conv'),
    'biformer-one-region': biformer(topks=1),
    'gray': lambda: DAT(
        dict(SMALL, formulation='v2023', block_types='D'), (1,), in_channels=1
    ),
}


def assert_equal(traced, backbone, batch, size=SIZE):
    x = torch.rand(batch, backbone.in_channels, *size)
    torch.testing.assert_close(traced(x), backbone(x), rtol=1e-4, atol=1e-5)


def other_size(size, traced=SIZE):
    return re.escape(
        f'x must be images of the traced size {traced}; got {size}. Trace the model '
        'for this size, or use torch.export.'
    )


@pytest.mark.parametrize('build', BUILDERS.values(), ids=BUILDERS)
def test_a_traced_backbone_works_for_its_size_alone(build):
    backbone = build().eval()
    x = torch.rand(2, backbone.in_channels, *SIZE)

    traced = torch.jit.trace(backbone, x, check_trace=False)

    for batch in (1, 3):
        assert_equal(traced, backbone, batch)
    for size in ((65, 94), (93, 65)):
        with pytest.raises(torch.jit.Error, match=other_size(size)):
            traced(torch.rand(2, backbone.in_channels, *size))


@pytest.mark.parametrize('name', ['dat-table', 'biformer-soft'])
def test_large_images_are_traced_without_chunks(name, on_cpu):
    on_cpu(chunk_numel=64, tiled_min_logits=1, chunked_min_logits=1)
    backbone = BUILDERS[name]().eval()

    traced = torch.jit.trace(backbone, torch.rand(2, 3, *SIZE))

    assert not [n for n in traced.inlined_graph.nodes() if 'Python' in n.kind()]
    assert_equal(traced, backbone, batch=3)


def test_gradients_flow_through_a_trace():
    backbone = BUILDERS['dat-table']().eval()
    traced = torch.jit.trace(backbone, torch.rand(2, 3, *SIZE))
    x = torch.rand(2, 3, *SIZE)

    weights = list(backbone.parameters())
    found, expected = (
        torch.autograd.grad(sum(map(test_contract.mean_with_noise, model(x))), weights)
        for model in (traced, backbone)
    )

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_without_tracing_every_size_works():
    backbone = BUILDERS['biformer-one-region']().eval()
    torch.jit.trace(backbone, torch.rand(1, 3, *SIZE), check_trace=False)

    assert backbone(torch.rand(1, 3, 64, 96))[1].shape == (1, 32, 8, 12)


@pytest.mark.parametrize(
    'name', ['dat-table', 'dat-2022', 'biformer-one-region', 'shunted']
)
def test_legacy_onnx_export_keeps_the_size(name, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    backbone = BUILDERS[name]().eval()
    path, x = tmp_path / 'model.onnx', torch.rand(2, 3, *SIZE)
    dynamo = 'dynamo' in inspect.signature(torch.onnx.export).parameters

    torch.onnx.export(
        backbone,
        (x,),
        path,
        input_names=['x'],
        opset_version=17,
        dynamic_axes=dict(x={2: 'height', 3: 'width'}),
        **(dict(dynamo=False) if dynamo else {}),
    )

    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    found = session.run(None, dict(x=x.numpy()))
    for one, other in zip(found, backbone(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match='invalid expand shape'):
        session.run(None, dict(x=torch.rand(2, 3, 65, 94).numpy()))
