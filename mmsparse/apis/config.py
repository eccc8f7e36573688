"""Files of configurations, and what is wrong with them, in one line."""

import importlib.util
import traceback
from pathlib import Path

from mmengine.config import Config

from mmsparse.errors import UsageError, format_error

READERS = ('mmengine.config', 'mmengine.utils')  # of configurations
SUFFIXES = ('.py', '.yml', '.yaml', '.json')
INSTALLING = (
    'python -m mmsparse.doctor tells what there is, and docs/installation.md how to '
    'install the hosts'
)
BASES = (
    'a _base_ is a path from the folder of its configuration, or one of a host, as '
    "'mmdet::_base_/default_runtime.py'; files of mmsparse are named by path"
)


def read_file(path: str) -> Config:
    """Read a configuration file.

    Args:
        path: The file.

    Returns:
        The configuration.

    Raises:
        UsageError: The file, or one that it is based on, is missing, broken or no
            configuration, or needs a host that is not installed.
    """
    if not Path(path).is_file():
        raise UsageError(f'config: no such file: {path}')
    try:
        return Config.fromfile(path)
    except ModuleNotFoundError as error:
        # OneDL's mmengine does not know that its mmsegmentation has another name.
        forked = 'mmsegmentation' in str(error) and importlib.util.find_spec('mmseg')
        raise UsageError(
            f"{path} is based on mmseg::, which OneDL's mmengine does not find; it "
            f'needs the hosts of OpenMMLab, in another environment ({error})'
            if forked
            else f'{path} needs a host that is not installed ({error}); {INSTALLING}'
        ) from error
    except Exception as error:  # noqa: BLE001 - a configuration is a program
        raise UsageError(f'config: {_fault(path, error)}') from error


def _fault(path: str, error: BaseException) -> str:
    """What is wrong with a configuration file, or with one that it is based on."""
    file, base, line = path, None, ''
    for frame, number in traceback.walk_tb(error.__traceback__):
        function = frame.f_code.co_name
        if function == '<module>':
            file, line = frame.f_code.co_filename, f' (line {number})'
        elif frame.f_globals.get('__name__', '').startswith(READERS):
            if function != '_get_base_files':  # it reads a copy
                file = frame.f_locals.get('filename', file)
            base = base or frame.f_locals.get('cfg_path')
    if isinstance(error, FileNotFoundError) and not line:
        return f'{path}: no such _base_: {file}; {BASES}'
    if base:
        return f'{file}: no such _base_: {base}; {BASES}'
    if Path(file).suffix not in SUFFIXES:
        return f'{file} is no configuration; those end in {", ".join(SUFFIXES)}'
    if isinstance(error, ImportError):
        while error.__context__:
            error = error.__context__
        return f'{file}: {error}; PYTHONPATH must have the folders of custom_imports'
    # What Python parses has no name.
    return f'{file}: {format_error(error).replace("<unknown>, ", "")}{line}'
