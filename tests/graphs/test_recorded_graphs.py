"""Backbones as torch.jit, torch.compile and torch.export record them."""

import copy
import re

import pytest
import torch
from tiny_backbones import ARCHS, OTHERS, build

from mmsparse.models.classifier import Classifier

# torch.jit is deprecated, and warns of sizes that become constants.
pytestmark = pytest.mark.filterwarnings('ignore')

DYNAMIC = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}
EXAMPLE = (2, 3, 96, 128)
OTHER_SHAPES = [(4, 3, 128, 128), (3, 3, 105, 71)]  # torch treats 1 by itself


def assert_equal(recorded, model, *shapes):
    for shape in shapes:
        x = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(recorded(x), model(x), rtol=1e-3, atol=1e-4)


def one_stage(name):
    """The backbone with its first stage alone: half of the time."""
    backbone, arch = (ARCHS | OTHERS)[name]
    return backbone(arch, out_indices=(0,)).eval()


@pytest.mark.parametrize(('mode', 'size'), [('train', (48, 64)), ('eval', (97, 130))])
@pytest.mark.parametrize('name', ARCHS)
def test_a_saved_trace_gives_the_same_feature_maps(name, mode, size, tmp_path, on_cpu):
    on_cpu(gather_numel=64)  # autograd functions, but for traces
    model = build(name).train(mode == 'train')
    x = torch.rand(2, 3, *size)
    torch.jit.trace(model, x, check_trace=False).save(tmp_path / 'traced.pt')

    loaded = torch.jit.load(tmp_path / 'traced.pt')

    torch.testing.assert_close(loaded(x), model(x), rtol=1e-3, atol=1e-4)
    height, width = size
    message = f'x must be images of the traced size {size}; got {(height, width + 32)}'
    with pytest.raises(torch.jit.Error, match=re.escape(message)):
        loaded(torch.rand(2, 3, height, width + 32))


def test_a_saved_trace_of_a_classifier_gives_the_same_logits(tmp_path):
    model = Classifier(build('biformer'), num_classes=5).eval()
    torch.jit.trace(model, torch.rand(1, 3, 64, 64)).save(tmp_path / 'traced.pt')

    assert_equal(torch.jit.load(tmp_path / 'traced.pt'), model, (3, 3, 64, 64))


@pytest.mark.parametrize('name', ['dat-2022', 'shunted'])  # the others: exported
def test_one_compiled_graph_serves_images_of_any_size(name):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = one_stage(name)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='eager')

    assert_equal(compiled, model, EXAMPLE, *OTHER_SHAPES)

    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1


@pytest.mark.parametrize('name', ['dat-2023', 'biformer'])
def test_a_compiled_backbone_has_the_same_gradients(name):
    torch.compiler.reset()
    model, x = one_stage(name), torch.rand(2, 3, 48, 64)
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend='aot_eager')

    found, expected = (
        torch.autograd.grad(sum(out.square().mean() for out in run(x)), weights)
        for run, weights in (
            (compiled, list(other.parameters())),
            (model, list(model.parameters())),
        )
    )

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


# test_export.py has classifiers with the others.
@pytest.mark.parametrize('name', ['dat-2023', 'biformer', 'dat-multi-scale'])
def test_one_exported_graph_serves_images_of_any_size(name):
    model = one_stage(name)

    program = torch.export.export(
        model, (torch.rand(EXAMPLE),), dynamic_shapes=(DYNAMIC,)
    )

    assert_equal(program.module(), model, *OTHER_SHAPES)
    if name == 'dat-2023':  # a neighborhood has 7x7 tokens of stride 4
        with pytest.raises(AssertionError, match='Guard failed'):
            program.module()(torch.rand(2, 3, 20, 128))


def test_fx_cannot_trace_checks_of_sizes():
    with pytest.raises(torch.fx.proxy.TraceError, match='control flow'):
        torch.fx.symbolic_trace(build('shunted'))
