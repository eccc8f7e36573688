"""Find out which differences of the variants of a study are noise of the seeds."""

from collections.abc import Sequence
from math import ceil, sqrt
from statistics import mean, variance

ERRORS = 2  # standard errors from which a difference is significant


def seed_deviation(groups: Sequence[Sequence[float]]) -> float | None:
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
    squares = sum(variance(values) * (len(values) - 1) for values in repeated)
    return sqrt(squares / sum(len(values) - 1 for values in repeated))


def standard_error(deviation: float, *counts: int) -> float:
    """Return the standard error of the difference of two means of so many values."""
    return deviation * sqrt(sum(1 / count for count in counts))


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Return how many seeds of both variants would make a difference significant.

    Args:
        difference: Difference of two means, in the unit of ``deviation``.
        deviation: Standard deviation of a value.

    Returns:
        The number, at least 2; None if the difference is 0.
    """
    if not difference:
        return None
    return max(2, ceil(2 * (ERRORS * deviation / difference) ** 2))


def describe_difference(
    values: Sequence[float], reference: Sequence[float], deviation: float | None
) -> str:
    """Format the difference of means, and whether it is more than noise.

    Args:
        values: Values of a variant.
        reference: Values of the variant to compare with.
        deviation: Standard deviation of a value, None if it is not known.

    Returns:
        For example ``-1.3`` without a deviation; ``-1.3 ± 0.4`` with the standard
        error; and ``-0.3 ± 0.4 (noise; 28 seeds needed)`` within two of them.
    """
    difference = mean(values) - mean(reference)
    if deviation is None:
        return f'{difference:+.1f}'
    error = standard_error(deviation, len(values), len(reference))
    text = f'{difference:+.1f} ± {error:.1f}'
    if abs(difference) >= ERRORS * error:
        return text
    needed = seeds_needed(difference, deviation)
    return f'{text} (noise; {needed} seeds needed)' if needed else f'{text} (noise)'
