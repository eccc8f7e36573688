"""Running a configuration of mmdet, mmsegmentation or mmpretrain.

The hosts are found by the name that the configuration gives as ``default_scope``;
nothing here imports one by itself.
"""

import argparse
import copy
import importlib
import importlib.util
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import nn

from mmsparse.apis.config import INSTALLING, read_file
from mmsparse.checkpoint.state_dict import load_state_dict, read_weights
from mmsparse.datasets.checks import check_crops, check_dataset
from mmsparse.errors import UsageError, config_errors, format_error
from mmsparse.registry import MODELS

HOSTS = ('mmpretrain', 'mmdet', 'mmseg')
IN_CLONE = (Path(__file__).parents[1] / 'tools').is_dir()
COMMAND = 'python tools/{}.py' if IN_CLONE else 'mim run mmsparse {}'
DIGITS_COMMAND = COMMAND.format('prepare_digits')
CONVERT_COMMAND = COMMAND.format('convert_checkpoint')


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments by which every command changes a configuration.

    Args:
        parser: Parser of the command.
    """
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go; work_dirs/CONFIG if not given',
    )
    add_cfg_options(parser, "model.backbone.arch=small data.x='[1,2]'")
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='who starts the processes of a distributed job',
    )
    parser.add_argument('--local-rank', type=int, help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the argument that changes settings of a configuration.

    Args:
        parser: Parser of the command.
        example: Settings, as they are written there.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Settings,
        default={},
        metavar='KEY=VALUE',
        help=f'change settings, for example {example}',
    )


class _Settings(DictAction):
    """Settings as KEY=VALUE; others are told as argparse tells mistakes."""

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
        except AssertionError as error:  # of brackets
            parser.error(f'{option_string}: {error}')


def load_config(args: argparse.Namespace) -> Config:
    """Read the configuration that a command line names, and make it ready to run.

    Args:
        args: Parsed :func:`config_arguments` and ``config``, the file.

    Returns:
        The configuration with a work directory, its host registered, its data there.

    Raises:
        UsageError: The file, the host or the data is missing, or does not fit.
    """
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir or not cfg.get('work_dir'):
        cfg.work_dir = args.work_dir or str(Path('work_dirs', Path(args.config).stem))
    check_data(cfg)
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        _distribute_on_cpu(cfg)
    return cfg


def read_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a configuration file and register its host.

    Args:
        path: The file.
        options: Settings to change, by dotted key.

    Returns:
        The configuration.

    Raises:
        UsageError: The file cannot be read, see :func:`read_file`; or its host is not
            installed; or its backbone and neck do not fit, or crops and pictures, or
            ``options``.
    """
    cfg = read_file(path)
    try:
        cfg.merge_from_dict(options or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f'settings that {path} has no place for: {format_error(error)}'
        ) from error
    register_host(cfg.get('default_scope', ''))
    with config_errors():
        check_channels(cfg)
        check_crops(cfg)
    return cfg


def register_host(scope: str) -> None:
    """Register the models, data sets and hooks of a host.

    Args:
        scope: The configuration's ``default_scope``; only hosts of :data:`HOSTS` need
            registering.

    Raises:
        UsageError: The host is not installed.
    """
    if scope not in HOSTS:
        return
    if importlib.util.find_spec(scope) is None:
        raise UsageError(
            f'The configuration is for {scope}, which is not installed; {INSTALLING}'
        )
    importlib.import_module(f'{scope}.utils').register_all_modules(
        init_default_scope=False
    )


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a configuration, without pretrained weights.

    Args:
        cfg: The configuration, of a host that is registered.

    Returns:
        The host's model.

    Raises:
        UsageError: The configuration has no model, is for none of :data:`HOSTS`, or
            has settings that the model does not take.
    """
    scope = cfg.get('default_scope')
    if scope not in HOSTS or 'model' not in cfg:
        raise UsageError(
            f'The configuration needs a model and a default_scope of {HOSTS}; got '
            f'default_scope={scope!r} and {sorted(cfg)}'
        )
    models = importlib.import_module(f'{scope}.registry').MODELS
    settings = cfg.model.copy()
    if 'data_preprocessor' in cfg:  # where mmpretrain has it; the runner does so, too
        settings.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(scope), config_errors():
        return models.build(settings)


def load_model(cfg: Config, checkpoint: str, device: str = 'cpu') -> BaseModel:
    """Build the model of a configuration, with the weights of a checkpoint.

    Args:
        cfg: The configuration, of a host that is registered.
        checkpoint: The file, of torch or safetensors.
        device: Where the model shall compute.

    Returns:
        The model in eval mode. A segmentor takes pictures as a whole.

    Raises:
        UsageError: The configuration is of no host; or the checkpoint does not fit:
            tells the missing, the unexpected or the misshapen keys; or the file is
            missing, damaged or no checkpoint.
    """
    if cfg.get('default_scope') not in HOSTS:
        raise UsageError(
            f'{cfg.filename} has default_scope={cfg.get("default_scope")!r}; models '
            f'can be run with {sorted(HOSTS)}'
        )
    model = build_model(cfg)
    load_weights(model, checkpoint)
    if hasattr(model, 'test_cfg') and (model.test_cfg or {}).get('mode') == 'slide':
        model.test_cfg.mode = 'whole'
    return model.to(device).eval()


def load_weights(
    model: nn.Module, checkpoint: str, allow_unexpected: bool = False
) -> None:
    """Load the weights of a checkpoint, which must fit the model.

    Args:
        model: Model of mmdet, mmseg or mmpretrain.
        checkpoint: The file, of torch or safetensors.
        allow_unexpected: Ignore weights that the model does not have.

    Raises:
        UsageError: The file is missing, damaged or no checkpoint, or does not fit;
            lists the missing and unexpected keys and those of another size.
    """
    state = read_weights(checkpoint)
    state = {name.removeprefix('module.'): x for name, x in state.items()}
    if mismatch := load_state_dict(model, state, allow_unexpected):
        raise UsageError(
            f'checkpoint: {checkpoint} does not fit the configuration; {mismatch}'
        )


def check_channels(cfg: Config) -> None:
    """Raise UsageError unless what follows a backbone of ours takes its maps.

    Args:
        cfg: The configuration.

    Raises:
        UsageError: Other numbers of channels; names both settings.
    """
    model = cfg.get('model', {})
    backbone = dict(model.get('backbone') or {})
    returned = _returned_channels(backbone)
    part, settings = _first_with_channels(model)
    if not returned or not part:
        return
    taken, indices = settings['in_channels'], settings.get('in_index')
    if isinstance(taken, int):  # a head that takes one map, by default the last
        taken, indices = [taken], [-1 if indices is None else indices]
    if indices is not None:
        returned = [returned[i] for i in indices]
    if list(taken) != returned:
        raise UsageError(
            f'model.{part}.in_channels={settings["in_channels"]} does not fit '
            f'model.backbone: {backbone["type"]} with '
            f'arch={backbone.get("arch", "the default")!r} and '
            f'out_indices={backbone.get("out_indices", "the default")} returns '
            f'{returned} channels; change in_channels or out_indices.'
        )


def _returned_channels(settings: dict[str, Any]) -> list[int]:
    """Channels of the maps of a backbone of ours; empty if that cannot be told."""
    scope, _, name = str(settings.get('type')).partition('.')
    backbone = MODELS.get(name) if scope == MODELS.scope else None
    if not hasattr(backbone, 'arch_settings'):
        return []
    defaults = inspect.signature(backbone).parameters
    arch = settings.get('arch', defaults['arch'].default)
    try:
        widths = dict(enumerate(backbone.resolve_arch(arch).embed_dims))
    except ValueError:  # building the backbone reports it
        return []
    indices = settings.get('out_indices', defaults['out_indices'].default)
    return [widths[i] for i in indices if i in widths]


def _first_with_channels(model: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The part of a model that takes the backbone's maps, and its name."""
    for part in ('neck', 'panoptic_head', 'decode_head', 'head'):
        settings = model.get(part) or {}
        if isinstance(settings, (list, tuple)):
            settings = settings[0]
        if 'in_channels' in settings:
            return part, settings
    return '', {}


def check_pretrained(cfg: Config) -> None:
    """Raise UsageError unless the files that the model starts from exist.

    Args:
        cfg: The configuration.

    Raises:
        UsageError: One is missing; says how to make it.
    """
    for path in _pretrained(cfg.get('model')):
        if '://' not in path and not Path(path).is_file():
            raise UsageError(
                f'init_cfg: no such file: {path}; convert the official weights: '
                f'{CONVERT_COMMAND} DOWNLOADED {path}'
            )


def _pretrained(settings: Any) -> Iterator[str]:
    """Every file that an init_cfg within the settings names."""
    if isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _pretrained(value)
    elif isinstance(settings, dict):
        if settings.get('type') == 'Pretrained':
            yield str(settings.get('checkpoint'))
        yield from _pretrained(list(settings.values()))


def check_data(cfg: Config) -> None:
    """Raise UsageError unless the data that the loaders read is there.

    Args:
        cfg: The configuration.

    Raises:
        UsageError: Some is missing; says how to make it.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset', {})
        while 'dataset' in dataset:  # wrappers such as RepeatDataset
            dataset = dataset['dataset']
        root = dataset.get('data_root')
        if root and not Path(root).exists():
            advice = (
                f'make it with: {DIGITS_COMMAND}'
                if 'digits' in Path(root).parts
                else 'put the data there or set the data_root of the data sets'
            )
            raise UsageError(f'{name}: no data at {root}; {advice}')
        if root and cfg.get('default_scope') == 'mmseg':
            check_dataset(name, dataset, cfg.get('model') or {})


def augment_pictures(cfg: Config, pipeline: str) -> None:
    """Test each picture in several forms, as the hosts' own commands do.

    Args:
        cfg: The configuration, which is changed.
        pipeline: Name of its pipeline for that.

    Raises:
        UsageError: The configuration has no such pipeline, or no ``tta_model``.
    """
    for name in (pipeline, 'tta_model'):
        if name not in cfg:
            raise UsageError(f'--tta needs {name} in the configuration')
    cfg.test_dataloader.dataset.pipeline = cfg[pipeline]
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def _distribute_on_cpu(cfg: Config) -> None:
    """Do what MMEngine does only for GPUs: a process group, and a wrapper for it."""
    if not is_distributed():
        torch.distributed.init_process_group('gloo')
    os.environ.setdefault('LOCAL_RANK', '0')
    cfg.model_wrapper_cfg = dict(
        type='mmsparse.CPUDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
