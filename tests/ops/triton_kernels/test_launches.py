"""The choice of a kernel's launch: measured once on a GPU."""

from types import SimpleNamespace

import pytest

pytest.importorskip('triton', minversion='3')

from triton.runtime.errors import OutOfResources

from mmsparse.ops.triton import _common
from mmsparse.ops.triton._common import Launch, launch_fastest

SLOW, FAST, LARGE = (Launch(16 * n, 16, 1, 1) for n in (1, 2, 4))


@pytest.fixture
def measured(monkeypatch):
    """Return the launches that were measured, by a clock that knows them."""
    launches = []

    def do_bench(run, **_):
        run()
        launches.append(runs[-1])
        return {SLOW: 2.0, FAST: 1.0}[runs[-1]]

    runs = []
    monkeypatch.setattr(_common, '_fastest', {})
    monkeypatch.setattr(_common, '_must_not_measure', lambda: False)
    monkeypatch.setattr(_common.triton.testing, 'do_bench', do_bench)
    return SimpleNamespace(launches=launches, runs=runs)


def run_on(measured, **x):
    def run(launch):
        if launch == LARGE:
            raise OutOfResources(2, 1, 'shared memory')
        measured.runs.append(launch)

    x = SimpleNamespace(**dict(is_cuda=True, device='cuda', dtype='bf16') | x)
    launch_fastest(run, [SLOW, FAST, LARGE], x, 'kernel', 64)
    return measured.runs[-1]


def test_the_fastest_launch_is_measured_once(measured):
    assert run_on(measured) == FAST
    assert measured.launches == [SLOW, FAST]
    assert run_on(measured) == FAST
    assert len(measured.launches) == 2
    assert run_on(measured, dtype='fp32') == FAST
    assert len(measured.launches) == 4


def test_the_first_launch_is_taken_where_nothing_may_be_measured(measured, monkeypatch):
    assert run_on(measured, is_cuda=False) == SLOW
    monkeypatch.setattr(_common, '_must_not_measure', lambda: True)
    assert run_on(measured) == SLOW
    assert not measured.launches
