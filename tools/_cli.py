"""Run a command: one-line errors, exit status, and no warnings of dependencies.

Every command imports this module first: it reports a module that this Python lacks, and
drops what dependencies say about themselves while they are imported.
"""

from __future__ import annotations  # older Pythons must be able to read this file

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
PUBLIC_DATA = ('cifar10', 'camvid', 'bccd', 'coco128')  # of tools/prepare_data.py
BROKEN_PIPE = 128 + 13  # status of a command that SIGPIPE ends
INSTALLED = '.mim' in __file__  # and no clone


def use_environment(problem: str) -> str:
    """Return the error of a Python that cannot run the commands, with the way out."""
    error = f'error: {sys.executable} {problem}'
    if INSTALLED:
        return f"{error}; run pip install 'mmsparse[openmmlab,digits,export]'"
    if Path(sys.prefix).parent == ROOT:
        return f'{error}, which the environment should have; complete it: make install'
    folder = '' if Path.cwd() == ROOT else f'{ROOT}/'
    return (
        f'{error}; activate the environment (source {folder}.venv/bin/activate), or '
        'create it first (make install)'
    )


def _report_missing(
    cls: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report a module that is not installed in one line, any other error as usual."""
    name = (getattr(error, 'name', None) or '').partition('.')[0]
    if issubclass(cls, ModuleNotFoundError) and name and find_spec(name) is None:
        print(use_environment(f'lacks {name}'), file=sys.stderr)
    else:
        sys.__excepthook__(cls, error, trace)


sys.excepthook = _report_missing
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(use_environment('is older than Python 3.10'))

from mmsparse.cli import PROGRAM, command_name  # noqa: E402
from mmsparse.errors import (  # noqa: E402
    MissingFileError,
    OfficialWeightsError,
    UsageError,
)

# Warnings of the dependencies about themselves, by the start of their text. Of any text
# are DeprecationWarning and FutureWarning.
WARNINGS = (
    'pkg_resources is deprecated as an API',
    'DeprecationWarning: `',  # mmdet
    "Only use 'alpha' for pillow backend",  # ColorJitter of mmpretrain
    '``build_loss`` would be deprecated',  # mmseg about its heads
    'Default ``avg_non_ignore`` is False',
    'The draw is False, it means that the hook for visualization',
    'To copy construct from a tensor, it is recommended',  # mmdet
    r'torch\.meshgrid: in an upcoming release',  # mmdet
    r'torch\.utils\.checkpoint: the use_reentrant parameter',  # mmdet
    r'Warning: The \w+ is out of bounds',  # mmengine about drawings
    r'Glyph \d+ .* missing from',  # matplotlib; reported once by use_fonts_for
)
LOG_WARNINGS = (
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias of "LocalBackend"',
    'The prefix is not set in metric class',
    'Failed to search registry with scope "mm',
    'findfont: Failed to find font weight',  # matplotlib
    'Because batch augmentations are enabled',  # mmpretrain
)

for text in WARNINGS:
    warnings.filterwarnings('ignore', text)
for category in (DeprecationWarning, FutureWarning):
    warnings.simplefilter('ignore', category)
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # no line of the decoder
os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # nor of torch's profiler
PROFILING = ('ablate', 'benchmark', 'compare')
if Path(sys.argv[0].removeprefix(PROGRAM)).stem in PROFILING:
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors='backslashreplace')  # names that a locale does not have


def run(main: Callable[[], int | None], *errors: type[Exception]) -> None:
    """Run a command and exit: 0, or 1 after an error, which is printed as one line.

    Args:
        main: The command; may return its exit status.
        *errors: Exceptions, in addition to UsageError, that need no traceback.
    """
    if 'mmengine' in sys.modules:
        filter_log(import_module('mmengine.logging').MMLogger.get_current_instance())
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # of a pipe into head; Python would report it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except (UsageError, *errors) as error:
        sys.exit(f'error: {error}{_hint(error)}')
    except KeyboardInterrupt:
        sys.exit('interrupted')


def filter_log(logger: logging.Logger) -> None:
    """Drop the warnings in LOG_WARNINGS from a logger, for example of a runner."""
    logger.addFilter(lambda record: not record.getMessage().startswith(LOG_WARNINGS))


filter_log(logging.getLogger('matplotlib.font_manager'))


def command(tool: str) -> str:
    """Return the command of a file of tools, as the user has called this one."""
    if sys.argv[0].startswith(PROGRAM):
        return f'{PROGRAM}{command_name(tool)}'
    return f'mim run mmsparse {tool}' if INSTALLED else f'python tools/{tool}.py'


def _hint(error: Exception) -> str:
    """Return the command that makes the file that is needed, '' if there is none."""
    convert = command('convert_checkpoint')
    if isinstance(error, OfficialWeightsError) and '://' not in error.path:
        return f': {convert} {error.path} CONVERTED.pth'
    if not isinstance(error, MissingFileError):
        return ''
    parts = Path(error.path).parts
    if 'digits' in parts:
        return f'; create it with: {command("prepare_digits")}'
    for name in PUBLIC_DATA:
        if name in parts:
            return f'; prepare it with: {command("prepare_data")} {name} DOWNLOADED'
    if Path(error.path).suffix == '.pth':
        return f'; convert the official weights: {convert} DOWNLOADED {error.path}'
    return ''


def check_files(*paths: str) -> None:
    """Raise UsageError unless all files exist, before a model is built."""
    for path in paths:
        if not Path(path).is_file():
            raise UsageError(f'no such file: {path}')


def check_unique_names(images: Sequence[str], names: Sequence[str] = ()) -> None:
    """Raise UsageError if two images would have the same name of output files.

    Args:
        images: Their files.
        names: Names of their output files; by default those of the images.
    """
    named: dict[str, str] = {}
    for path, name in zip(images, names or [Path(x).stem for x in images], strict=True):
        if name in named:
            raise UsageError(
                f'{named[name]} and {path} have the same name, so one drawing would '
                'overwrite the other; draw them in two runs with different --out'
            )
        named[name] = path
