"""Errors that commands tell in one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """A mistake of the user, told in one line that needs no traceback."""


class MissingFileError(UsageError):
    """A file or folder that a config names does not exist.

    Args:
        message: The error.
        path: The file or folder.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def format_error(error: Exception) -> str:
    """Write in one line what an exception tells.

    Args:
        error: The exception.

    Returns:
        The first line of its text; after its kind unless it is a ValueError, which says
        by itself what is wrong.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason, kind = ' '.join(lines[:1]), type(error)
    if isinstance(error, ValueError):
        return reason
    name = f'{kind.__module__}.{kind.__qualname__}'.removeprefix('builtins.')
    return f'{name}: {reason}' if reason else name


@contextmanager
def config_errors() -> Iterator[None]:
    """Tell settings that a registry or a constructor refuses in one line.

    Yields:
        Nothing.

    Raises:
        UsageError: One did; names the class, and the place in the code if the reason
            may not be enough.
    """
    try:
        yield
    except UsageError:
        raise
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        owner = place = ''
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == '__init__':
                owner = f'{type(frame.f_locals["self"]).__name__}: '
                place = f' ({frame.f_code.co_filename}, line {line})'
        place = '' if isinstance(error, ValueError) else place
        raise UsageError(f'config: {owner}{format_error(error)}{place}') from error
