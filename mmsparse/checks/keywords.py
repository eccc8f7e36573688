"""Check the types and arguments of everything that a config names."""

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import Parameter, isclass
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsparse.checks.signatures import function_parameters, parameters, required
from mmsparse.errors import UsageError
from mmsparse.models.backbones.base import StagedBackbone

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')
LOOPS = ('train_cfg', 'val_cfg', 'test_cfg')
# Arguments that mmengine's builders take out of the settings, by registry.
TAKEN = {
    'HOOKS': {'priority'},
    'PARAM_SCHEDULERS': {'convert_to_iter_based'},
    'OPTIM_WRAPPERS': {'optimizer', 'constructor', 'paramwise_cfg'},
    'MODELS': {'bg_cls_weight'},  # of losses, by DETRs
    'TRANSFORMS': {'magnitude_key', 'magnitude_range'},  # of policies
    'WEIGHT_INITIALIZERS': {'override'},
}
# Arguments that they add.
ADDED = {'optimizer', 'params', 'runner', 'dataloader', 'evaluator', 'dataset', 'seed'}
ADDED |= {'sampler', 'batch_size', 'save_dir'}
LOADER_KEYS = parameters(DataLoader).keys() | {'num_batch_per_epoch'}
ALBUMENTATIONS = ('Albu', 'Albumentations')  # their transforms are not the library's
PARTS = ('backbone', 'neck', 'head', 'decode_head', 'auxiliary_head', 'rpn_head')
PARTS += ('roi_head', 'bbox_head', 'mask_head', 'panoptic_head', 'data_preprocessor')
# Registries of settings at any depth of a model, by key.
TASK_PARTS = (
    'assigner',
    'sampler',
    'anchor_generator',
    'prior_generator',
    'bbox_coder',
)
REGISTRIES = dict.fromkeys(TASK_PARTS, 'TASK_UTILS') | {
    'augments': 'BATCH_AUGMENTS',
    'init_cfg': 'WEIGHT_INITIALIZERS',
}
# Types that mmengine and the libraries add.
DEFAULT_TYPES = {
    'val_cfg': 'ValLoop',
    'test_cfg': 'TestLoop',
    'optim_wrapper': 'OptimWrapper',
}
TYPED = {'DATASETS', 'TRANSFORMS', 'DATA_SAMPLERS', 'METRICS', 'HOOKS', 'OPTIMIZERS'}
TYPED |= {'PARAM_SCHEDULERS', 'VISUALIZERS', 'VISBACKENDS', 'MODELS'}
# Settings to which their parents or the command line add others.
COMPLETED = ('MODELS', 'TASK_UTILS', 'WEIGHT_INITIALIZERS')
NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?', re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Settings of one object: their path in the config, and the registry for it."""

    path: str
    registry: str  # attribute of a library's module ``registry``
    settings: Mapping[str, Any]


def check_keywords(cfg: Config, host: str, training: bool = True) -> None:
    """Raise UsageError for a type or an argument that does not exist.

    Model, test data, metrics and visualizer are checked, for a training also its data,
    hooks, optimizer, schedulers and loops, as far as it can be known from the
    signatures of the classes.

    Args:
        cfg: The config.
        host: Its library: mmdet, mmseg or mmpretrain.
        training: Whether the model is trained.
    """
    registries = importlib.import_module(f'{host}.registry')
    with DefaultScope.overwrite_default_scope(host):
        for place in _places(cfg, training):
            registry = getattr(registries, place.registry, None)
            if registry is not None:
                _check(place, registry, host)


def _places(cfg: Config, training: bool) -> Iterator[Place]:
    for name in ('model', 'tta_model'):
        yield from _model_places(name, cfg.get(name), 'MODELS')
    for name in LOADERS if training else LOADERS[2:]:
        yield from _loader_places(name, cfg.get(name))
    for name in EVALUATORS if training else EVALUATORS[1:]:
        evaluator = cfg.get(name)
        metrics = evaluator.get('metrics') if _is_dict(evaluator) else None
        path = name if metrics is None else f'{name}.metrics'
        yield from _all(path, 'METRICS', metrics or evaluator)
    visualizer = cfg.get('visualizer')
    yield from _all('visualizer', 'VISUALIZERS', visualizer)
    backends = visualizer.get('vis_backends') if _is_dict(visualizer) else None
    yield from _all('visualizer.vis_backends', 'VISBACKENDS', backends)
    if training:
        yield from _training_places(cfg)


def _training_places(cfg: Config) -> Iterator[Place]:
    hooks = cfg.get('default_hooks')
    for name, hook in hooks.items() if _is_dict(hooks) else ():
        yield from _all(f'default_hooks.{name}', 'HOOKS', hook)
    yield from _all('custom_hooks', 'HOOKS', cfg.get('custom_hooks'))
    wrapper = cfg.get('optim_wrapper')
    if _is_dict(wrapper) and 'optimizer' in wrapper:  # one optimizer
        yield Place('optim_wrapper', 'OPTIM_WRAPPERS', _typed('optim_wrapper', wrapper))
        path = 'optim_wrapper.optimizer'
        yield from _all(path, 'OPTIMIZERS', wrapper['optimizer'])
    schedulers = cfg.get('param_scheduler')
    yield from _all('param_scheduler', 'PARAM_SCHEDULERS', schedulers)
    for name in LOOPS:
        if _is_dict(cfg.get(name)) and cfg[name]:
            yield Place(name, 'LOOPS', _typed(name, cfg[name]))


def _typed(path: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings with the type that mmengine adds."""
    if 'type' in settings:
        return settings
    if path in DEFAULT_TYPES:
        return {'type': DEFAULT_TYPES[path], **settings}
    if 'by_epoch' not in settings:
        raise UsageError(
            f"{path} needs type='EpochBasedTrainLoop' or by_epoch; got "
            f'{", ".join(settings)}.'
        )
    name = 'EpochBasedTrainLoop' if settings['by_epoch'] else 'IterBasedTrainLoop'
    return {'type': name} | {k: v for k, v in settings.items() if k != 'by_epoch'}


def _loader_places(path: str, loader: Any) -> Iterator[Place]:
    if not _is_dict(loader):
        return
    _check_loader(path, loader)
    for name in ('sampler', 'batch_sampler'):
        yield from _all(f'{path}.{name}', 'DATA_SAMPLERS', loader.get(name))
    for dataset_path, settings in dataset_settings(path, loader):
        yield Place(dataset_path, 'DATASETS', settings)
        pipeline = settings.get('pipeline')
        yield from _all(f'{dataset_path}.pipeline', 'TRANSFORMS', pipeline)


def _check_loader(path: str, loader: Mapping[str, Any]) -> None:
    """Raise UsageError for options that a data loader lacks, or cannot have."""
    for name in loader:
        if name not in LOADER_KEYS | {'_scope_', 'disable_subprocess_warning'}:
            raise UsageError(
                f'{path}.{name}={loader[name]!r:.60} is not an argument of a data '
                f'loader; {advice(name, sorted(LOADER_KEYS))}'
            )
    for name in ('dataset', 'sampler'):
        if name not in loader and 'batch_sampler' not in loader:
            raise UsageError(
                f'{path} needs {name}; got {", ".join(loader)}. For a sampler write '
                f"sampler=dict(type='DefaultSampler', shuffle="
                f'{path == LOADERS[0]}).'
            )
    if not loader.get('num_workers'):
        for name in ('persistent_workers', 'prefetch_factor'):
            if loader.get(name):
                raise UsageError(
                    f'{path}.{name}={loader[name]} needs num_workers of at least 1; '
                    f'with num_workers=0 set persistent_workers=False and '
                    f'prefetch_factor=None.'
                )


def dataset_settings(path: str, loader: Any) -> Iterator[tuple[str, Mapping]]:
    """Yield path and settings of the data set of a loader, and of all it wraps."""
    for name in ('dataset', 'datasets'):
        inner = loader.get(name) if _is_dict(loader) else None
        for i, settings in enumerate(inner if _is_list(inner) else [inner]):
            inner_path = f'{path}.{name}[{i}]' if _is_list(inner) else f'{path}.{name}'
            if _is_dict(settings):
                yield inner_path, settings
                yield from dataset_settings(inner_path, settings)


def _model_places(path: str, settings: Any, registry: str | None) -> Iterator[Place]:
    """Yield the parts of a model whose registry is known by their keys."""
    if _is_list(settings):
        for i, part in enumerate(settings):
            yield from _model_places(f'{path}[{i}]', part, registry)
    elif _is_dict(settings):
        if registry and ('type' in settings or path == 'model.backbone'):
            yield Place(path, registry, settings)
        for name, value in settings.items():
            if name == 'prototype':  # a data loader, of mmpretrain's retrievers
                continue
            is_module = name in PARTS or name.startswith('loss')
            inner = 'MODELS' if is_module else REGISTRIES.get(name)
            yield from _model_places(f'{path}.{name}', value, inner)


def _all(path: str, registry: str, settings: Any) -> Iterator[Place]:
    """Yield settings, of a list all, and the transforms in transforms."""
    if _is_list(settings):
        for i, item in enumerate(settings):
            yield from _all(f'{path}[{i}]', registry, item)
    elif _is_dict(settings) and settings:
        yield Place(path, registry, settings)
        if registry == 'TRANSFORMS' and settings.get('type') not in ALBUMENTATIONS:
            for name in ('transforms', 'policies', 'aug_space'):
                yield from _all(f'{path}.{name}', registry, settings.get(name))


def _is_dict(settings: Any) -> bool:
    return isinstance(settings, Mapping)


def _is_list(settings: Any) -> bool:
    return isinstance(settings, (list, tuple))


def find_class(registry: Registry, name: Any) -> type | None:
    """Return the class of a ``type`` in a config: a name in the registry or a class."""
    found = registry.get(name) if isinstance(name, str) else name
    return found if isclass(found) else None


def type_name(settings: Mapping[str, Any]) -> str:
    """Return the name of a type in a config, without module and scope."""
    name = settings.get('type')
    return str(getattr(name, '__name__', name)).rpartition('.')[2]


def _check(place: Place, registry: Registry, host: str) -> None:
    name = place.settings.get('type')
    if name is None and place.registry in TYPED:
        raise UsageError(
            f'{place.path} needs type; got {", ".join(map(str, place.settings))}.'
        )
    cls = find_class(registry, name)
    if cls is None and isinstance(name, str) and registry.get(name) is None:
        raise_unknown_type(place, name, registry, host)
    accepted = None if cls is None else _accepted(cls, place.settings)
    if accepted is None:
        return
    taken = TAKEN.get(place.registry, set()) | {'type', '_scope_'}
    for argument in place.settings:
        if argument not in accepted.keys() | taken:
            _raise_unknown_argument(place, argument, cls, accepted)
        _check_number(place, argument, accepted.get(argument))
    missing = [x for x in required(cls) if x not in place.settings.keys() | ADDED]
    if missing and place.registry not in COMPLETED:
        raise UsageError(
            f'{place.path}: {cls.__name__} needs {" and ".join(missing)}; got '
            f'{", ".join(place.settings)}.'
        )


def _accepted(cls: type, settings: Mapping[str, Any]) -> Mapping[str, Parameter] | None:
    """Return the arguments of a class, also those that it keeps for another."""
    if cls is CheckpointHook:
        return function_parameters(cls.__init__, Runner.save_checkpoint)
    if cls is EMAHook:
        name = settings.get('ema_type', 'ExponentialMovingAverage')
        average = find_class(MODELS, name)
        return average and function_parameters(cls.__init__, average.__init__)
    return parameters(cls)


def _check_number(place: Place, name: str, parameter: Parameter | None) -> None:
    """Raise UsageError for a number in quotes, unless a text is accepted."""
    value = place.settings[name]
    if parameter is None or not isinstance(value, str) or not NUMBER.fullmatch(value):
        return
    is_number = parameter.annotation in (int, float)
    if is_number or type(parameter.default) in (int, float):
        yaml = '; YAML needs a point, 1.0e-4' if 'e' in value.lower() else ''
        raise UsageError(
            f'{place.path}.{name}={value!r} must be a number, not a text in '
            f'quotes{yaml}.'
        )


def raise_unknown_type(
    place: Place, name: str, registry: Registry, host: str, key: str = 'type'
) -> None:
    """Raise UsageError for a name that a registry lacks, with the closest one."""
    own = registry.parent.children.get('mmsparse') if registry.parent else None
    if own is not None and own.get(f'mmsparse.{name}') is not None:
        raise UsageError(
            f'{place.path}.{key}={name!r} is not known to {host}; write '
            f"'mmsparse.{name}'."
        )
    close = get_close_matches(name, _names_in(registry, name), n=1)
    meant = f'did you mean {close[0]!r}? Otherwise ' if close else ''
    raise UsageError(
        f'{place.path}.{key}={name!r} is not known to {host}; {meant}import your '
        f'module by custom_imports, or install what it needs.'
    )


def _names_in(registry: Registry, name: str) -> list[str]:
    """Return the names that can be meant: those in the scope of a name if it exists."""
    root, scope = registry.parent or registry, name.rpartition('.')[0]
    if scope in root.children:
        return [f'{scope}.{x}' for x in root.children[scope].module_dict]
    return [*registry.module_dict, *root.module_dict]


def _raise_unknown_argument(
    place: Place, name: str, cls: type, accepted: Mapping[str, Parameter]
) -> None:
    value = place.settings[name]
    what = f'{place.path}.{name}={value!r:.60}'
    if issubclass(cls, StagedBackbone) and name in cls.arch_type.__dataclass_fields__:
        arch = place.settings.get('arch', accepted['arch'].default)
        base = arch if isinstance(arch, str) else arch.get('base', '...')
        raise UsageError(
            f'{what} is a setting of the architecture; write arch=dict(_delete_=True, '
            f'base={base!r}, {name}={value!r:.60}).'
        )
    if name == 'pretrained':
        part = f'{place.path}.backbone' if 'backbone' in accepted else place.path
        raise UsageError(
            f'{what} is a setting of OpenMMLab 1.x; set {part}.init_cfg=dict('
            f"type='Pretrained', checkpoint=...)."
        )
    raise UsageError(
        f'{what} is not an argument of {cls.__name__}; '
        f'{advice(name, sorted(accepted.keys() - ADDED))}'
    )


def advice(name: str, names: Sequence[str]) -> str:
    """Return what to write instead of an unknown name."""
    if name == '_delete_':
        return 'remove it: no base has these settings.'
    words = set(name.split('_'))
    same = [x for x in names if set(x.split('_')) == words]
    if close := same or get_close_matches(name, names, n=1):
        return f'did you mean {close[0]}?'
    return f'it takes {", ".join(names)}. Replace inherited settings by _delete_=True.'
