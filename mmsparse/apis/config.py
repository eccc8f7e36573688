"""Read a config, apply command-line options and register its host library."""

import argparse
import importlib
import importlib.util
import os
import traceback
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed

from mmsparse.checks import check_config, check_data
from mmsparse.errors import UsageError, config_errors, format_error
from mmsparse.registry import MODELS
from mmsparse.zoo import find_config

HOSTS = ('mmpretrain', 'mmdet', 'mmseg')
READERS = ('mmengine.config', 'mmengine.utils')  # modules that read config files
SUFFIXES = ('.py', '.yml', '.yaml', '.json')
INSTALLING = (
    'run python -m mmsparse.doctor to list what is installed, and see '
    'docs/installation.md'
)
BASES = (
    'a _base_ is a path relative to its config file, or a config of an installed '
    "library such as 'mmdet::_base_/default_runtime.py'; give configs of mmsparse by "
    'path'
)


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`load_config` reads, except ``config``."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: work_dirs/CONFIG)',
    )
    add_cfg_options(parser, "model.backbone.arch=small data.x='[1,2]'")
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='launcher of a distributed job (default: none)',
    )
    parser.add_argument('--local-rank', type=int, help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add ``--cfg-options``, which changes settings, with an example for the help."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Settings,
        default={},
        metavar='KEY=VALUE',
        help=f'change settings of the config, for example {example}',
    )


class _Settings(DictAction):
    """KEY=VALUE settings; a malformed one is an error of argparse."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for text in values:
            if text.find('=') < 1:
                parser.error(f'{option_string}: must be KEY=VALUE; got {text!r}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:  # unbalanced brackets
            parser.error(f'{option_string}: {error}')
        except RecursionError:  # dict(...) in a value
            parser.error(
                f'{option_string}: values are numbers, words and lists of them; set '
                f'dicts by their keys, such as model.backbone.arch=small, or in a '
                f'config; got {" ".join(values)}'
            )


def load_config(args: argparse.Namespace, *loaders: str) -> Config:
    """Read the config that a command line names, with launcher and work directory.

    ``args`` has parsed :func:`config_arguments`, and ``config``, the file. The data of
    ``loaders`` are checked. For errors, see :func:`read_config` and
    :func:`mmsparse.checks.check_data`.
    """
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir or not cfg.get('work_dir'):
        cfg.work_dir = args.work_dir or str(Path('work_dirs', Path(args.config).stem))
    if host := find_host(cfg):
        check_config(cfg, host, training='train_dataloader' in loaders)
        check_data(cfg, host, loaders)
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        _distribute_on_cpu(cfg)
    return cfg


def read_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config, change settings by dotted key, and register its library.

    ``path`` is a file, or the name of a config of mmsparse. The ``default_scope`` is
    set to the library if there is none. UsageError is raised if the file or an option
    is invalid, the library (mmdet, mmseg or mmpretrain) is not installed, or
    :func:`mmsparse.checks.check_config` finds a mistake for inference.
    """
    cfg = read_file(path)
    try:
        cfg.merge_from_dict(options or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f'options do not fit the settings of {path}: {format_error(error)}'
        ) from error
    if host := find_host(cfg):
        cfg.default_scope = host
        register_host(host)
        with config_errors():
            check_config(cfg, host, training=False)
    return cfg


def read_file(path: str) -> Config:
    """Read a config file; an invalid file or base raises UsageError in one line."""
    if not Path(path).is_file():
        path = str(find_config(path))
    try:
        return Config.fromfile(path)
    except ModuleNotFoundError as error:
        raise UsageError(
            f'{path} needs a library that is not installed ({error}); {INSTALLING}'
        ) from error
    except Exception as error:  # noqa: BLE001 - a config is a program
        raise UsageError(f'config: {_config_error(path, error)}') from error


def _config_error(path: str, error: BaseException) -> str:
    """Return the file at fault, which may be a base of ``path``, and the reason."""
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
        return f'{file} must end in {", ".join(SUFFIXES)}'
    if isinstance(error, ImportError):
        while error.__context__:
            error = error.__context__
        return f'{file}: {error}; add the folders of custom_imports to PYTHONPATH'
    if 'Duplicate key' in str(error):
        line = '; inherit from one of these files and add the settings of the other'
    reason = format_error(error).replace('<unknown>, ', '')  # a name of the parser
    return f'{file}: {reason}{line}'


def find_host(cfg: Config) -> str | None:
    """Return the library of a config: mmpretrain, mmdet, mmseg, or None.

    It is the ``default_scope``. Pure-Python configs have none: it is the library that
    defines the class of the model, or the first of its bases. A class that cannot be
    imported raises UsageError.
    """
    if cfg.get('default_scope') in HOSTS:
        return cfg.default_scope
    try:
        model = (cfg.get('model') or {}).get('type')
    except ImportError as error:  # types of pure-Python configs are imported when read
        raise UsageError(f'config: {format_error(error)}') from error
    if isinstance(model, str):
        if (scope := model.partition('.')[0]) in HOSTS:
            return scope
        model = MODELS.get(model) if scope == MODELS.scope else None
    modules = (x.__module__.partition('.')[0] for x in getattr(model, '__mro__', ()))
    return next((name for name in modules if name in HOSTS), None)


def register_host(scope: str) -> None:
    """Register all modules of mmdet, mmseg or mmpretrain.

    A library that is not installed raises UsageError.
    """
    if importlib.util.find_spec(scope) is None:
        raise UsageError(
            f'The config needs {scope}, which is not installed; {INSTALLING}'
        )
    utils = importlib.import_module(f'{scope}.utils')
    utils.register_all_modules(init_default_scope=False)


def _distribute_on_cpu(cfg: Config) -> None:
    """Set up a process group and a model wrapper, as mmengine does for GPUs only."""
    if not is_distributed():
        torch.distributed.init_process_group('gloo')
    os.environ.setdefault('LOCAL_RANK', '0')
    cfg.model_wrapper_cfg = dict(
        type='mmsparse.CPUDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
