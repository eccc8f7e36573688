import itertools

import pytest
import torch
from benchmark import Candidate, Measurement, Stopwatch, measure, peak_bytes

CPU = torch.device('cpu')
MIB = 2**20


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests advance."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(
        'benchmark.timing.perf_counter', lambda: Clock.now, raising=True
    )
    return Clock


def test_parts_of_a_run_may_be_nested_and_repeated(clock):
    watch = Stopwatch(CPU)

    with watch.time('whole'):
        for seconds in (1.0, 2.0):
            with watch.time('part'):
                clock.now += seconds
            clock.now += 10

    assert watch.seconds == {'part': 3.0, 'whole': 23.0}


def taking(name, clock, seconds, calls):
    """A candidate whose runs take given seconds; the first is the warm-up."""
    remaining = iter(seconds)

    def run(watch):
        calls.append(name)
        with watch.time('whole'):
            clock.now += next(remaining)

    return Candidate(name, run)


def test_candidates_run_in_turns_after_an_untimed_warm_up(clock):
    calls, lines = [], []
    candidates = [
        taking('a', clock, [99, 2, 4, 6], calls),
        taking('b', clock, [99, 1, 1, 3], calls),
    ]

    first, second = measure(candidates, 3, CPU, lines.append)

    assert calls == ['a', 'b', 'a', 'b', 'b', 'a', 'a', 'b']
    assert first.seconds == {'whole': [2, 4, 6]}
    assert second.seconds == {'whole': [1, 1, 3]}
    assert first.median_seconds('whole') == 4
    assert lines[:3] == [
        'warm-up and memory: a',
        'warm-up and memory: b',
        'round 1 of 3: a',
    ]
    assert len(lines) == len(calls)


def test_candidates_are_compared_within_their_rounds():
    # In the second half the machine was three times slower.
    one = Measurement('one', {'whole': [2.0, 2.0, 6.0, 6.0]}, 0)
    other = Measurement('other', {'whole': [1.0, 1.0, 3.0, 3.0]}, 0)

    assert other.ratio('whole', one) == 0.5
    assert one.ratio('whole', one) == 1


def test_no_repeats_raise_an_error():
    with pytest.raises(ValueError, match='repeats must be at least 1; got 0'):
        measure([], 0, CPU)


def allocate():
    floats = MIB // 4
    first = torch.zeros(4 * floats)
    del first
    second, third = torch.zeros(6 * floats), torch.zeros(1 * floats)
    del second
    return third


def test_peak_memory_is_the_most_in_use_at_once():
    assert peak_bytes(allocate, CPU) == 7 * MIB


def test_memory_from_before_the_run_is_not_counted():
    weight = torch.zeros(1000, 1000, requires_grad=True)

    def forward_and_backward():
        weight.sin().sum().backward()

    def release():
        del held[0]
        return torch.zeros(MIB // 4)

    held = [torch.zeros(8 * MIB // 4)]
    assert peak_bytes(lambda: weight.detach().sin(), CPU) == 4_000_000
    assert peak_bytes(forward_and_backward, CPU) >= 2 * 4_000_000
    assert peak_bytes(release, CPU) == MIB
    assert peak_bytes(lambda: held.append(torch.zeros(MIB)), CPU) == 4 * MIB
    assert peak_bytes(release, CPU) == MIB  # known to the profiler, unlike the first


def test_every_candidate_has_its_own_peak():
    sizes = dict(small=2, large=5)
    candidates = [
        Candidate(name, lambda watch, n=n: torch.zeros(n * MIB // 4))
        for name, n in sizes.items()
    ]

    found = measure(candidates, 1, CPU)

    assert {x.name: x.peak_bytes for x in found} == {'small': 2 * MIB, 'large': 5 * MIB}


def test_the_stopwatch_waits_for_a_gpu(monkeypatch):
    ticks, waits = itertools.count(), []
    monkeypatch.setattr(torch.cuda, 'synchronize', waits.append)
    monkeypatch.setattr('benchmark.timing.perf_counter', lambda: next(ticks))
    device = torch.device('cuda', 0)

    with Stopwatch(device).time('part'):
        pass

    assert waits == [device, device]


def test_another_clock_may_be_used():
    def run(watch):
        with watch.time('whole'):
            pass

    ticks = itertools.count()
    (found,) = measure([Candidate('a', run)], 2, CPU, clock=lambda: next(ticks))

    assert found.seconds == {'whole': [1, 1]}
