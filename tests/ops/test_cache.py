"""The cache itself, and ops that must not build again what they have built."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from mmsparse.ops import (
    bilevel_routing_attention,
    neighborhood_attention,
    window_attention,
)
from mmsparse.ops._cache import MAX_ENTRIES, cached_by_size
from mmsparse.ops.pyramid import cell_centers
from mmsparse.ops.regions import region_means
from mmsparse.ops.windows import window_bias


@pytest.fixture
def built():
    """A cached function, and the arguments of every call of what it caches."""
    calls = []

    def build(length, device):
        calls.append((length, device))
        return torch.arange(length, device=device)

    return cached_by_size(build), calls


def test_each_size_and_device_is_built_once(built):
    cached, calls = built

    results = [cached(3, 'cpu'), cached(3, 'cpu'), cached(4, 'cpu'), cached(3, 'meta')]

    assert calls == [(3, 'cpu'), (4, 'cpu'), (3, 'meta')]
    assert results[0] is results[1]
    assert results[2].tolist() == [0, 1, 2, 3]
    assert results[3].is_meta


def test_only_the_latest_sizes_are_kept(built):
    cached, calls = built
    for length in range(MAX_ENTRIES):
        cached(length, 'cpu')
    cached(0, 'cpu')  # used again: now 1 is the oldest
    cached(MAX_ENTRIES, 'cpu')
    del calls[:]

    cached(0, 'cpu')
    cached(1, 'cpu')

    assert calls == [(1, 'cpu')]
    assert len(cached.cache) == MAX_ENTRIES


def test_what_inference_mode_has_built_can_be_trained_with(built):
    cached, _ = built
    with torch.inference_mode():
        cached(3, 'cpu')
    weight = torch.ones(3, requires_grad=True)

    (weight * cached(3, 'cpu')).sum().backward()

    assert weight.grad.tolist() == [0, 1, 2]


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_nothing_built_under_a_dispatch_mode_is_kept(built):
    cached, calls = built
    with FakeTensorMode():
        fake = cached(3, 'cpu')
    with Passing():
        cached(3, 'cpu')

    assert type(cached(3, 'cpu')) is torch.Tensor is not type(fake)
    assert len(calls) == 3


def test_a_trace_records_what_it_builds(built):
    cached, calls = built
    cached(3, 'cpu')

    traced = torch.jit.trace(lambda x: x * cached(x.shape[0], 'cpu'), torch.ones(3))

    assert traced(torch.ones(5)).tolist() == [0, 1, 2, 3, 4]
    assert len(cached.cache) == 1
    assert len(calls) > 1


def test_compiled_code_builds_by_itself(built):
    cached, _ = built
    compiled = torch.compile(
        lambda x: x * cached(x.shape[0], 'cpu'), backend='eager', fullgraph=True
    )

    assert compiled(torch.ones(3)).tolist() == [0, 1, 2]
    assert not cached.cache


def test_threads_share_the_cache(built):
    cached, _ = built
    start = threading.Barrier(4)

    def run(seed):
        start.wait()
        order = torch.randperm(2 * MAX_ENTRIES, generator=seed).tolist()
        return all(len(cached(length, 'cpu')) == length for length in order)

    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, seeds))


def windows(q, k, v, window, shift):
    bias = window_bias(torch.zeros((2 * window - 1) ** 2, 2), window)
    return window_attention(q, k, v, bias, window, shift)


OPS = {
    'windows': lambda q, k, v: windows(q, k, v, 4, 0),
    'shifted-windows': lambda q, k, v: windows(q, k, v, 4, 1),
    'neighbors': lambda q, k, v: neighborhood_attention(q, k, v, torch.zeros(2, 5, 5)),
    'masked-routes': lambda q, k, v: bilevel_routing_attention(
        q, k, v, 2, 2, 3, backend='masked'
    ),
    'region-means': lambda q, k, v: region_means(q, (5, 5)),
    'cells': lambda q, k, v: cell_centers(len(q), q),
}


@pytest.mark.parametrize('run', OPS.values(), ids=OPS)
def test_a_second_call_builds_no_index(run):
    q, k, v = torch.rand(3, 2, 12, 12, 8)
    run(q, k, v)

    with profile() as profiler:
        run(q, k, v)

    names = {event.name for event in profiler.function_events}
    assert names
    assert not names & {'aten::arange', 'aten::tensor', 'aten::lift_fresh'}
