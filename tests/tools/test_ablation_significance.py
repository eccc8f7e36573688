"""Differences of variants and the noise of random seeds."""

from statistics import mean

import numpy as np
import pytest
from ablation.report import all_figures
from ablation.significance import (
    Deviation,
    describe_difference,
    residual_deviation,
    seeds_needed,
)
from scipy.stats import ttest_rel


def test_what_a_seed_adds_to_all_variants_is_no_noise():
    noise = np.array([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    values = noise + [[50.0], [60.0], [70.0]] + [0.0, 4.0, 9.0]

    found = residual_deviation(values.tolist())

    assert found.value == pytest.approx((4 * 0.25 / found.freedom(3)) ** 0.5)
    assert found.freedom(3) == 2 * 2


def test_two_variants_have_a_paired_t_test():
    one, two = [50.0, 52.0, 51.0, 54.5], [50.5, 53.0, 52.5, 54.0]

    found = residual_deviation([one, two])

    t = (mean(two) - mean(one)) / found.error(4)
    expected = ttest_rel(two, one)
    assert (t, found.freedom(4)) == pytest.approx((expected.statistic, expected.df))


@pytest.mark.parametrize('groups', [[[50.0], [60.0]], [[50.0, 52.0]]])
def test_one_seed_or_one_variant_has_no_deviation(groups):
    assert residual_deviation(groups) is None


def test_variants_of_other_seeds_are_not_compared():
    with pytest.raises(ValueError, match='shorter'):
        residual_deviation([[50.0, 52.0], [60.0]])


def test_so_many_seeds_make_a_difference_significant():
    """With one less it is not, and with many variants it is 1.96 standard errors."""
    known = Deviation(1.3, 1)
    number = seeds_needed(0.5, known)

    assert known.threshold(number) <= 0.5 < known.threshold(number - 1)
    assert number > seeds_needed(0.5, Deviation(1.3, 1000))
    assert Deviation(1.3, 1000).threshold(9) == pytest.approx(
        1.96 * known.error(9), rel=1e-3
    )
    assert seeds_needed(-100.0, known) == 2
    assert seeds_needed(0.0, known) is None


@pytest.mark.parametrize(
    ('values', 'deviation', 'text'),
    [
        ([48.7], None, '-1.3'),
        ([49.0, 48.4], Deviation(0.5, 16), '-1.3 ± 0.5'),
        ([49.0, 48.4], Deviation(0.5, 2), '-1.3 ± 0.5 (not significant; 3 seeds'),
        ([49.9, 49.5], Deviation(0.5, 16), '-0.3 ± 0.5 (not significant; 22 seeds'),
        ([50.0, 50.0], Deviation(0.0, 2), '+0.0 ± 0.0 (not significant)'),
    ],
)
def test_differences_within_the_noise_are_not_significant(values, deviation, text):
    reference = [50.0] * len(values)

    found = describe_difference(values, reference, deviation)

    assert found.removesuffix(' needed)') == text


def test_figures_have_the_difference_from_the_first_variant():
    costs = dict(macs=1e9, iteration_seconds=0.1, peak_bytes=1, parameters=1)
    rows = [
        dict(costs, name=name, metric='mIoU', values=values)
        for name, values in (('one', [50.0, 50.2]), ('two', [55.0, 55.4]))
    ]

    first, second = all_figures(rows).values()

    assert first['difference'] == ''
    assert second['difference'] == '+5.1 ± 0.1'
