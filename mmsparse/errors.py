"""Format an exception as one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

# What constructors raise for a setting.
SETTINGS = (
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    TypeError,
    ValueError,
)


class UsageError(ValueError):
    """A mistake of the user; its message is one line and needs no traceback."""


class FileError(UsageError):
    """A mistake in or about the file ``path``."""

    def __init__(self, message: str, path: str = '') -> None:  # optional for pickle
        super().__init__(message)
        self.path = path


class MissingFileError(FileError):
    """A file or folder that a config names does not exist."""


class OfficialWeightsError(FileError):
    """A file has official weights where converted ones are expected."""


def original_message(text: str) -> str:
    """Return the message of an error in a worker process without its traceback.

    torch puts the traceback, which ends with type and message, into the message.
    """
    if not text.startswith('Caught ') or '\nOriginal Traceback' not in text:
        return text
    return text.rstrip().rpartition('\n')[2].partition(': ')[2]


def format_error(error: Exception) -> str:
    """Return the first line of an exception, and its type unless it is a ValueError."""
    text = original_message(str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = ' '.join(lines[:1])
    if isinstance(error, ValueError):
        return reason
    cls = type(error)
    name = f'{cls.__module__}.{cls.__qualname__}'.removeprefix('builtins.')
    return f'{name}: {reason}' if reason else name


@contextmanager
def config_errors() -> Iterator[None]:
    """Raise UsageError for settings of a config that a constructor refuses.

    It names the class, and the line of code unless the reason is a ValueError or a
    library that is not installed.
    """
    try:
        yield
    except UsageError:
        raise
    except SETTINGS as error:
        owner = line_of_code = ''
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == '__init__':
                owner = f'{type(frame.f_locals["self"]).__name__}: '
                line_of_code = f' ({frame.f_code.co_filename}, line {line})'
        if isinstance(error, (ImportError, ValueError)):
            line_of_code = ''
        reason = format_error(error)
        raise UsageError(f'config: {owner}{reason}{line_of_code}') from error
