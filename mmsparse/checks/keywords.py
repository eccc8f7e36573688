"""Check the types and arguments of everything that a config names."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import isclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from torch.utils.data import DataLoader

from mmsparse.checks.signatures import parameters, required
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
}
# Arguments that they add.
ADDED = {'optimizer', 'params', 'runner', 'dataloader', 'evaluator', 'dataset', 'seed'}
ADDED |= {'sampler', 'batch_size', 'save_dir'}
LOADER_KEYS = parameters(DataLoader).keys() | {'num_batch_per_epoch'}
ALBUMENTATIONS = ('Albu', 'Albumentations')  # their transforms are not the library's
PARTS = ('backbone', 'neck', 'head', 'decode_head', 'auxiliary_head', 'rpn_head')
PARTS += ('roi_head', 'bbox_head', 'mask_head', 'panoptic_head')


@dataclass(frozen=True)
class Place:
    """Settings of one object: their path in the config, and the registry for it."""

    path: str
    registry: str  # attribute of a library's module ``registry``
    settings: Mapping[str, Any]


def check_keywords(cfg: Config, host: str) -> None:
    """Raise UsageError for a type or an argument that does not exist.

    Data sets, transforms, samplers, metrics, hooks, optimizer, schedulers, loops,
    visualizers and the parts of the model are checked, as far as it can be known from
    the signatures of the classes.

    Args:
        cfg: The config.
        host: Its library: mmdet, mmseg or mmpretrain.
    """
    registries = importlib.import_module(f'{host}.registry')
    with DefaultScope.overwrite_default_scope(host):
        for place in _places(cfg):
            _check(place, getattr(registries, place.registry), host)


def _places(cfg: Config) -> Iterator[Place]:
    for name in LOADERS:
        yield from _loader_places(name, cfg.get(name))
    for name in EVALUATORS:
        evaluator = cfg.get(name)
        metrics = evaluator.get('metrics') if _is_dict(evaluator) else None
        path = name if metrics is None else f'{name}.metrics'
        yield from _all(path, 'METRICS', metrics or evaluator)
    hooks = cfg.get('default_hooks')
    for name, hook in hooks.items() if _is_dict(hooks) else ():
        yield from _all(f'default_hooks.{name}', 'HOOKS', hook)
    yield from _all('custom_hooks', 'HOOKS', cfg.get('custom_hooks'))
    wrapper = cfg.get('optim_wrapper')
    if _is_dict(wrapper) and 'optimizer' in wrapper:  # one optimizer
        typed = {'type': 'OptimWrapper', **wrapper}
        yield Place('optim_wrapper', 'OPTIM_WRAPPERS', typed)
        path = 'optim_wrapper.optimizer'
        yield from _all(path, 'OPTIMIZERS', wrapper['optimizer'])
    schedulers = cfg.get('param_scheduler')
    yield from _all('param_scheduler', 'PARAM_SCHEDULERS', schedulers)
    for name in LOOPS:
        yield from _all(name, 'LOOPS', cfg.get(name))
    visualizer = cfg.get('visualizer')
    yield from _all('visualizer', 'VISUALIZERS', visualizer)
    backends = visualizer.get('vis_backends') if _is_dict(visualizer) else None
    yield from _all('visualizer.vis_backends', 'VISBACKENDS', backends)
    yield from _model_places('model', cfg.get('model'))


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
                f'loader; {_advice(name, sorted(LOADER_KEYS))}'
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


def _model_places(path: str, model: Any) -> Iterator[Place]:
    if _is_list(model):
        for i, part in enumerate(model):
            yield from _model_places(f'{path}[{i}]', part)
    elif _is_dict(model):
        if 'type' in model:
            yield Place(path, 'MODELS', model)
        for name in PARTS:
            yield from _model_places(f'{path}.{name}', model.get(name))


def _all(path: str, registry: str, settings: Any) -> Iterator[Place]:
    """Yield settings with a type, of a list all, and the transforms in transforms."""
    if _is_list(settings):
        for i, item in enumerate(settings):
            yield from _all(f'{path}[{i}]', registry, item)
    elif _is_dict(settings) and 'type' in settings:
        yield Place(path, registry, settings)
        if registry == 'TRANSFORMS' and settings['type'] not in ALBUMENTATIONS:
            nested = settings.get('transforms')
            yield from _all(f'{path}.transforms', registry, nested)


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
    cls = find_class(registry, name)
    if cls is None and isinstance(name, str) and registry.get(name) is None:
        _raise_unknown_type(place, name, registry, host)
    accepted = None if cls is None else parameters(cls)
    if accepted is None:
        return
    taken = TAKEN.get(place.registry, set()) | {'type', '_scope_'}
    for argument in place.settings:
        if argument not in accepted.keys() | taken:
            _raise_unknown_argument(place, argument, cls)
    missing = [x for x in required(cls) if x not in place.settings.keys() | ADDED]
    if missing and place.registry != 'MODELS':  # whose parents complete settings
        raise UsageError(
            f'{place.path}: {cls.__name__} needs {" and ".join(missing)}; got '
            f'{", ".join(place.settings)}.'
        )


def _raise_unknown_type(place: Place, name: str, registry: Registry, host: str) -> None:
    own = registry.parent.children.get('mmsparse') if registry.parent else None
    if own is not None and own.get(f'mmsparse.{name}') is not None:
        raise UsageError(
            f'{place.path}.type={name!r} is not known to {host}; write '
            f"'mmsparse.{name}'."
        )
    known = [*registry.module_dict]
    if registry.parent is not None:
        known += registry.parent.module_dict
    close = get_close_matches(name.rpartition('.')[2], known, n=1)
    advice = f'did you mean {close[0]!r}? Otherwise ' if close else ''
    raise UsageError(
        f'{place.path}.type={name!r} is not known to {host}; {advice}import your '
        f'module by custom_imports, or install what it needs.'
    )


def _raise_unknown_argument(place: Place, name: str, cls: type) -> None:
    value = place.settings[name]
    what = f'{place.path}.{name}={value!r:.60}'
    accepted = parameters(cls)
    if issubclass(cls, StagedBackbone) and name in cls.arch_type.__dataclass_fields__:
        arch = place.settings.get('arch', accepted['arch'].default)
        base = arch if isinstance(arch, str) else arch.get('base', '...')
        raise UsageError(
            f'{what} is a setting of the architecture; write arch=dict(_delete_=True, '
            f'base={base!r}, {name}={value!r:.60}).'
        )
    raise UsageError(
        f'{what} is not an argument of {cls.__name__}; '
        f'{_advice(name, sorted(accepted.keys() - ADDED))}'
    )


def _advice(name: str, names: Sequence[str]) -> str:
    words = set(name.split('_'))
    same = [x for x in names if set(x.split('_')) == words]
    if close := same or get_close_matches(name, names, n=1):
        return f'did you mean {close[0]}?'
    return f'it takes {", ".join(names)}. Replace inherited settings by _delete_=True.'
