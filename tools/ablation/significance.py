"""Find out which differences of the variants of a study are noise of the seeds.

Seeds are blocks: with the same seed, all variants see the same images in the same
order. What a seed adds to all of them is no noise of their differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import mean

from scipy.stats import norm, t

LEVEL = 0.05  # of significance, for differences in both directions


@dataclass(frozen=True)
class Deviation:
    """Standard deviation of a value, without what its seed adds to all variants.

    Args:
        value: In the unit of the value.
        comparisons: Number of variants that are compared with the first, at least 1.
    """

    value: float
    comparisons: int

    def freedom(self, seeds: int) -> int:
        """Return the degrees of freedom of the estimate from a number of seeds."""
        return self.comparisons * (seeds - 1)

    def error(self, seeds: int) -> float:
        """Return the standard error of the difference of two variants' means."""
        return self.value * sqrt(2 / seeds)

    def threshold(self, seeds: int) -> float:
        """Return the difference of means from which it is significant (Student's t)."""
        return float(t.ppf(1 - LEVEL / 2, self.freedom(seeds))) * self.error(seeds)


def residual_deviation(groups: Sequence[Sequence[float]]) -> Deviation | None:
    """Return the standard deviation that neither variant nor seed explains.

    It is the residual of the analysis of variance of a randomized block design, and
    with two variants that of a paired t-test.

    Args:
        groups: Values of each variant, one for each seed, of the same seeds.

    Returns:
        The deviation, assumed to be the same for all variants; None for one variant or
        one seed.

    Raises:
        ValueError: The numbers of values differ.
    """
    by_seed = [mean(values) for values in zip(*groups, strict=True)]
    comparisons, others = len(groups) - 1, len(by_seed) - 1
    if not comparisons * others:
        return None
    overall = mean(by_seed)
    squares = sum(
        (value - mean(values) - seed + overall) ** 2
        for values in groups
        for value, seed in zip(values, by_seed, strict=True)
    )
    return Deviation(sqrt(squares / (comparisons * others)), comparisons)


def seeds_needed(difference: float, deviation: Deviation) -> int | None:
    """Return how many seeds would make a difference of two variants significant.

    Args:
        difference: Difference of two means, in the unit of ``deviation``.
        deviation: From :func:`residual_deviation`.

    Returns:
        The number, at least 2, if difference and deviation are right; None if the
        difference is 0.
    """
    if not difference:
        return None
    errors = norm.ppf(1 - LEVEL / 2)  # Student's t takes more
    seeds = max(2, ceil(2 * (errors * deviation.value / difference) ** 2))
    while abs(difference) < deviation.threshold(seeds):
        seeds += 1
    return seeds


def describe_difference(
    values: Sequence[float], reference: Sequence[float], deviation: Deviation | None
) -> str:
    """Format the difference of means, and whether it is more than noise.

    Args:
        values: Values of a variant.
        reference: Values of the variant to compare with, of the same seeds.
        deviation: From :func:`residual_deviation`.

    Returns:
        For example ``-1.3`` without a deviation, ``-1.3 ± 0.4`` with the standard
        error, and ``-0.3 ± 0.4 (not significant; 28 seeds needed)``.
    """
    difference = mean(values) - mean(reference)
    if deviation is None:
        return f'{difference:+.1f}'
    error = deviation.error(len(values))
    text = f'{difference:+.1f} ± {error:.1f}'
    if abs(difference) > deviation.threshold(len(values)):
        return text
    needed = seeds_needed(difference, deviation)
    return f'{text} (not significant{f"; {needed} seeds needed" if needed else ""})'
