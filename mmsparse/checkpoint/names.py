"""Names within a state dict."""

import re
from collections.abc import Collection


def find_prefix(names: Collection[str], marker: str) -> str | None:
    """Find what stands before the names of a model, ``module.`` for example.

    Args:
        names: Names of a state dict.
        marker: Regular expression of the start of some names of the model.

    Returns:
        The prefix, mostly empty; None if there are no such names.
    """
    for name in names:
        if found := re.search(rf'(^|(?<=\.)){marker}', name):
            return name[: found.start()]
    return None


def listed(names: Collection[str], shown: int = 20) -> str:
    """List names in a message.

    Args:
        names: The names.
        shown: How many of them at most.

    Returns:
        The names, and the number of those left out.
    """
    text = ', '.join(list(names)[:shown])
    return f'{text} and {len(names) - shown} more' if len(names) > shown else text
