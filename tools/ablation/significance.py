"""Find out which differences of the variants of a study are noise of the seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import mean, variance

from scipy.stats import t

LEVEL = 0.05  # of significance, for differences in both directions


@dataclass(frozen=True)
class Deviation:
    """Standard deviation of a value over random seeds.

    Args:
        value: In the unit of the value.
        freedom: Degrees of freedom of the estimate, at least 1.
    """

    value: float
    freedom: int

    def error(self, *counts: int) -> float:
        """Return the standard error of the difference of means of so many values."""
        return self.value * sqrt(sum(1 / count for count in counts))

    @property
    def errors(self) -> float:
        """Standard errors beyond which a difference is significant (Student's t)."""
        return float(t.ppf(1 - LEVEL / 2, self.freedom))


def seed_deviation(groups: Sequence[Sequence[float]]) -> Deviation | None:
    """Return the standard deviation of a value over random seeds.

    Args:
        groups: Values of each variant, one for each seed.

    Returns:
        The deviation, pooled over the variants: it is assumed to be the same for all;
        None if no variant has two values.
    """
    repeated = [values for values in groups if len(values) > 1]
    if not repeated:
        return None
    freedom = sum(len(values) - 1 for values in repeated)
    squares = sum(variance(values) * (len(values) - 1) for values in repeated)
    return Deviation(sqrt(squares / freedom), freedom)


def seeds_needed(difference: float, deviation: Deviation) -> int | None:
    """Return how many seeds of both variants would make a difference significant.

    Args:
        difference: Difference of two means, in the unit of ``deviation``.
        deviation: Standard deviation of a value.

    Returns:
        The number, at least 2, if the deviation is right; None if the difference is 0.
    """
    if not difference:
        return None
    errors = t.ppf(1 - LEVEL / 2, 1000)  # many seeds
    return max(2, ceil(2 * (errors * deviation.value / difference) ** 2))


def describe_difference(
    values: Sequence[float], reference: Sequence[float], deviation: Deviation | None
) -> str:
    """Format the difference of means, and whether it is more than noise.

    Args:
        values: Values of a variant.
        reference: Values of the variant to compare with.
        deviation: Standard deviation of a value, None if it is not known.

    Returns:
        For example ``-1.3`` without a deviation, ``-1.3 ± 0.4`` with the standard
        error, and ``-0.3 ± 0.4 (not significant; 28 seeds needed)``.
    """
    difference = mean(values) - mean(reference)
    if deviation is None:
        return f'{difference:+.1f}'
    error = deviation.error(len(values), len(reference))
    text = f'{difference:+.1f} ± {error:.1f}'
    if abs(difference) > deviation.errors * error:
        return text
    needed = seeds_needed(difference, deviation)
    return f'{text} (not significant{f"; {needed} seeds needed" if needed else ""})'
