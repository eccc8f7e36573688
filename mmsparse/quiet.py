"""Silence for what libraries tell of each step."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(logger: logging.Logger, least: int) -> Iterator[None]:
    """Let a logger tell less for a while.

    Args:
        logger: The logger.
        least: Level from which it still tells.

    Yields:
        Nothing.
    """
    level = logger.level
    logger.setLevel(least)
    try:
        yield
    finally:
        logger.setLevel(level)
