"""Set log levels of other libraries for a while."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_level(logger: logging.Logger, level: int) -> Iterator[None]:
    """Set the level of a logger inside the context."""
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
