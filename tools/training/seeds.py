"""Format values of several random seeds."""

from collections.abc import Sequence


def describe_seeds(counts: Sequence[int]) -> str:
    """Return what the values of rows with these numbers of seeds are."""
    low, high = min(counts), max(counts)
    if high == 1:
        return 'one seed each, so small differences may be noise'
    number = str(low) if low == high else f'{low} to {high}'
    return f'mean and range of {number} seeds each'


def mean_and_range(values: Sequence[float]) -> str:
    """Format values as their mean and, of several, the range."""
    text = f'{sum(values) / len(values):.1f}'
    if len(values) > 1:
        text += f' ({min(values):.1f} to {max(values):.1f})'
    return text
