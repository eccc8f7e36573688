"""Differences of variants and the noise of random seeds."""

from statistics import stdev

import pytest
from ablation.report import all_figures
from ablation.significance import (
    describe_difference,
    seed_deviation,
    seeds_needed,
    standard_error,
)


def test_the_deviation_is_pooled_over_variants():
    one, two = [50.0, 52.0, 51.0], [60.0, 64.0, 62.0]

    assert seed_deviation([one]) == pytest.approx(stdev(one))
    assert seed_deviation([one, two, [70.0]]) == pytest.approx(((1 + 4) / 2) ** 0.5)
    assert seed_deviation([[50.0], [60.0]]) is None


def test_so_many_seeds_make_a_difference_significant():
    """With them, the difference is two standard errors, and with one less it is not."""
    number = seeds_needed(0.5, deviation=1.3)

    assert 2 * standard_error(1.3, number, number) <= 0.5
    assert 2 * standard_error(1.3, number - 1, number - 1) > 0.5
    assert seeds_needed(-100.0, deviation=1.3) == 2
    assert seeds_needed(0.0, deviation=1.3) is None


@pytest.mark.parametrize(
    ('values', 'deviation', 'text'),
    [
        ([48.7], None, '-1.3'),
        ([49.0, 48.4], 0.5, '-1.3 ± 0.5'),
        ([49.9, 49.5], 0.5, '-0.3 ± 0.5 (noise; 23 seeds needed)'),
        ([50.0, 50.0], 0.5, '+0.0 ± 0.5 (noise)'),
    ],
)
def test_differences_within_two_standard_errors_are_noise(values, deviation, text):
    assert describe_difference(values, [50.0] * len(values), deviation) == text


def test_figures_have_the_difference_from_the_first_variant():
    costs = dict(macs=1e9, iteration_seconds=0.1, peak_bytes=1, parameters=1)
    rows = [
        dict(costs, name=name, metric='mIoU', values=values)
        for name, values in (('one', [50.0, 50.2]), ('two', [55.0, 55.2]))
    ]

    first, second = all_figures(rows).values()

    assert first['difference'] == ''
    assert second['difference'] == '+5.0 ± 0.1'
