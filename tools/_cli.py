"""Run a command: one-line errors, exit status, and no warnings of dependencies.

Every command imports this module before mmengine, which warns while it is imported.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from mmsparse.errors import MissingFileError, OfficialWeightsError, UsageError

# Warnings of the dependencies about themselves, by the start of their text.
WARNINGS = (
    'pkg_resources is deprecated as an API',
    "Only use 'alpha' for pillow backend",  # ColorJitter of mmpretrain
    r'Failed to add .*VisBackend.*, please provide the `save_dir`',  # inferencers
    '``build_loss`` would be deprecated',  # mmseg about its heads
    'Default ``avg_non_ignore`` is False',
    'The draw is False, it means that the hook for visualization',
    'To copy construct from a tensor, it is recommended',  # mmdet
    r'torch\.meshgrid: in an upcoming release',  # mmdet
    r'torch\.utils\.checkpoint: the use_reentrant parameter',  # mmdet
    r'`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated',  # mmengine
)
LOG_WARNINGS = (
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias of "LocalBackend"',
    'The prefix is not set in metric class',
    'Failed to search registry with scope "mm',  # inferencers: registry of functions
)
COMMAND = 'mim run mmsparse {}' if '.mim' in __file__ else 'python tools/{}.py'

for text in WARNINGS:
    warnings.filterwarnings('ignore', text)


def run(main: Callable[[], int | None], *errors: type[Exception]) -> None:
    """Run a command and exit: 0, or 1 after an error, which is printed as one line.

    Args:
        main: The command; may return its exit status.
        *errors: Exceptions, in addition to UsageError, that need no traceback.
    """
    try:
        sys.exit(main())
    except (UsageError, *errors) as error:
        sys.exit(f'error: {error}{_hint(error)}')
    except KeyboardInterrupt:
        sys.exit('interrupted')


def filter_log(logger: logging.Logger) -> None:
    """Drop the warnings in LOG_WARNINGS from a logger, for example of a runner."""
    logger.addFilter(lambda record: not record.getMessage().startswith(LOG_WARNINGS))


def _hint(error: Exception) -> str:
    """Return the command that makes the file that is needed, '' if there is none."""
    convert = COMMAND.format('convert_checkpoint')
    if isinstance(error, OfficialWeightsError) and '://' not in error.path:
        return f': {convert} {error.path} CONVERTED.pth'
    if not isinstance(error, MissingFileError):
        return ''
    if 'digits' in Path(error.path).parts:
        return f'; create it with: {COMMAND.format("prepare_digits")}'
    if Path(error.path).suffix == '.pth':
        return f'; convert the official weights: {convert} DOWNLOADED {error.path}'
    return ''


def check_files(*paths: str) -> None:
    """Raise UsageError unless all files exist, before a model is built."""
    for path in paths:
        if not Path(path).is_file():
            raise UsageError(f'no such file: {path}')


def check_unique_names(images: Sequence[str]) -> None:
    """Raise UsageError if two images would have the same name of output files."""
    named: dict[str, str] = {}
    for path in images:
        stem = Path(path).stem
        if stem in named:
            raise UsageError(
                f'{named[stem]} and {path} have the same name, so one drawing would '
                'overwrite the other; draw them in two runs with different --out'
            )
        named[stem] = path
