import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark.backbone import backbone_candidates
from benchmark.timing import Stopwatch
from benchmark.timm_backbones import timm_backbones
from torch import nn

from mmsparse.apis import read_config

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / 'configs' / 'biformer' / 'biformer-nano_1xb32-9e_digits.py'
WIDTHS = {'tiny': 4, 'small': 40, 'base': 400}


class Convolution(nn.Conv2d):
    """A stub for a model of timm."""

    def __init__(self, width):
        super().__init__(3, width, kernel_size=4, stride=4)

    def reset_classifier(self, num_classes):
        self.num_classes = num_classes

    def forward_features(self, x):
        return self(x)


@pytest.fixture
def timm_calls(monkeypatch):
    """Install a stub of timm; return the list of its calls."""
    calls = []

    def create_model(name, **options):
        calls.append((name, options))
        (size,) = (size for size in WIDTHS if size in name)
        return Convolution(WIDTHS[size])

    monkeypatch.setitem(sys.modules, 'timm', SimpleNamespace(create_model=create_model))
    return calls


def test_backbones_of_timm_have_the_nearest_number_of_parameters(timm_calls):
    others = timm_backbones(40 * 49, size=(64, 96))

    assert list(others) == ['timm swin_small', 'timm convnext_small']
    for other in others.values():
        (out,) = other(torch.rand(1, 3, 64, 96))
        assert out.shape == (1, 40, 16, 24)
        assert other.model.num_classes == 0
    sizes = [options.get('img_size') for name, options in timm_calls if 'swin' in name]
    assert set(sizes) == {(64, 96)}


def test_without_timm_there_are_none_of_its_backbones(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)

    assert timm_backbones(1000, size=(64, 64)) == {}


@pytest.mark.parametrize('timm', [True, False])
def test_backbones_of_timm_run_with_their_own_macs(timm_calls, timm):
    cpu = torch.device('cpu')
    candidates = backbone_candidates(
        read_config(str(CONFIG)), (32, 32), 2, cpu, timm=timm
    )

    macs = {x.name: x.macs for x in candidates}
    stubs = ['timm swin_base', 'timm convnext_base']
    assert list(macs) == ['reference', 'fast paths', *(stubs if timm else ())]
    assert macs['reference'] == macs['fast paths'] > 0
    if timm:
        assert macs['timm swin_base'] == 2 * 8 * 8 * 48 * 400
    for candidate in candidates:
        watch = Stopwatch(cpu)
        candidate.run(watch)
        assert set(watch.seconds) == {'forward', 'forward + backward'}
