"""How FLOPs, memory traffic and memory grow with the image, counted without timing."""

from functools import cache

import pytest
import torch
from benchmark.operators import STRIDE, patterns
from counted import Counter, fake, flop_counter

from mmsparse import create_backbone

SIDES = (224, 2048)
AREA = (SIDES[1] / SIDES[0]) ** 2
# docs/speed.md: powers of the image's area by which FLOPs and traffic grow.
GROWTH = {
    'dense': (2, 1),
    'routed': (1, 1),
    'deformable': (2, 2),
    'neighborhood': (1, 1),
    'shunted': (2, 1),
}
# The backward pass of deformable attention on a CPU reads a number from a tensor.
CASES = [(name, training) for name in GROWTH for training in (False, True)]
CASES.remove(('deformable', True))


@cache
def count(side, training):
    """Return FLOPs and traffic of every pattern."""
    counts = {}
    with fake(torch.nn.Module()):
        for name, pattern in patterns(side // STRIDE, torch.device('cpu')):
            if (name, training) not in CASES:
                continue
            with flop_counter() as flops, Counter() as counter:
                with torch.set_grad_enabled(training):
                    out = pattern.attend('auto')
                if training:
                    torch.autograd.grad(out.sum(), pattern.inputs)
            counts[name] = flops.get_total_flops(), counter.moved
    return counts


@pytest.mark.parametrize(('name', 'training'), CASES)
def test_flops_and_traffic_grow_as_documented(name, training):
    small, large = (count(side, training)[name] for side in SIDES)

    for before, after, power in zip(small, large, GROWTH[name], strict=True):
        assert 0.7 < after / before / AREA**power < 1.4


@pytest.mark.parametrize(
    'name', ['biformer-tiny', 'dat-tiny', 'dat-nano', 'shunted-tiny']
)
def test_memory_of_a_training_step_grows_like_the_area(name):
    """Stored logits of dense attention would make it up to 16 times as much."""
    model = create_backbone(name).train()
    peaks = []
    for side in (224, 448):
        with Counter() as counter:
            sum(x.sum() for x in model(torch.rand(1, 3, side, side))).backward()
        peaks.append(counter.peak)
        model.zero_grad()

    assert peaks[1] / peaks[0] < 4.3
