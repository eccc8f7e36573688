"""Check the number of classes of every head, loss and metric against the data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

from mmsparse.checks.data import Data, listed
from mmsparse.checks.keywords import find_class, type_name
from mmsparse.checks.signatures import parameters
from mmsparse.errors import UsageError

# Parts of a model whose num_classes is not that of the data.
OTHER_CLASSES = ('backbone', 'rpn_head', 'data_preprocessor')
OTHER_HEADS = ('STDCHead',)  # of boundaries
NUMBERS = ('num_classes', 'num_things_classes', 'num_stuff_classes')
TEXT = ('GroundingDINO', 'GLIP')  # models that know classes by their text


@dataclass(frozen=True)
class Classes:
    """Classes of the data of a loader."""

    loader: str
    names: Sequence[str]
    things: int | None  # those with instances, all of other data; None if unknown
    stuff: int | None  # the others
    boxed: int | None  # those with boxes, stuff if its segments are loaded as objects

    @classmethod
    def of(cls, data: Data, names: Sequence[str]) -> 'Classes':
        """Return the classes of a data set."""
        metainfo = data.dataset.metainfo
        things = metainfo.get('thing_classes') or names
        stuff = metainfo.get('stuff_classes') or ()
        if sorted([*things, *stuff]) != sorted(names):  # of another data set
            return cls(data.loader, names, None, None, None)
        pipeline = data.settings.get('pipeline') or ()
        loaded = {type_name(x) for x in pipeline if isinstance(x, Mapping)}
        boxed = len(names) if 'LoadPanopticSegments' in loaded else len(things)
        return cls(data.loader, names, len(things), len(stuff), boxed)


def has_fixed_classes(model: Any) -> bool:
    """Return whether the classes of a model are those of its training data."""
    return type_name(model or {}) not in TEXT


def check_same_classes(train: Classes, other: Classes) -> None:
    """Raise UsageError unless two loaders have the same classes in the same order."""
    known, found = list(train.names), list(other.names)
    if known == found:
        return
    first = next(
        (
            i
            for i, pair in enumerate(zip(known, found, strict=False))
            if len({*pair}) > 1
        ),
        min(len(known), len(found)),
    )
    names = [repr(x[first]) if first < len(x) else 'none' for x in (found, known)]
    raise UsageError(
        f'{other.loader} has {len(found)} classes and {train.loader} {len(known)}; '
        f'class {first} is {names[0]} instead of {names[1]}. Give every data set the '
        f'same metainfo.classes in the same order.'
    )


def check_heads(cfg: Config, classes: Classes, host: str, models: Registry) -> None:
    """Raise UsageError unless all heads have as many classes as the data.

    Args:
        cfg: The config.
        classes: Classes of the training data, or of the test data.
        host: Library of the config.
        models: Its registry of models.
    """
    model = cfg.get('model') or {}
    with DefaultScope.overwrite_default_scope(host):
        for path, head in _heads('model', model):
            for name, value in _numbers(path, head, models):
                expected = _expected(name, head, classes, host)
                if expected and value not in expected:
                    _raise_other_number(f'{path}.{name}', value, expected[0], classes)
            _check_weights(path, head)
    if host == 'mmpretrain':
        _check_mixup(cfg, classes)
        _check_topk(cfg, len(classes.names))


def _expected(
    name: str, head: Mapping[str, Any], classes: Classes, host: str
) -> list[int]:
    """Return the numbers of classes that a head may have, none if unknown."""
    if host == 'mmseg' and name == 'num_classes':
        count = len(classes.names)
        return [2, 1] if count == 2 and _is_binary(head) else [count]
    numbers = (classes.boxed, classes.things, classes.stuff)
    number = dict(zip(NUMBERS, numbers, strict=True))[name]
    return [] if number is None else [number]


def _is_binary(head: Mapping[str, Any]) -> bool:
    """Return whether one output of a head of mmseg separates two classes."""
    losses = head.get('loss_decode') or {'type': 'CrossEntropyLoss'}
    losses = [losses] if isinstance(losses, Mapping) else losses
    softmax = [x for x in losses if type_name(x) == 'CrossEntropyLoss']
    return all(loss.get('use_sigmoid') for loss in softmax)


def _raise_other_number(path: str, value: int, expected: int, classes: Classes) -> None:
    count = len(classes.names)
    which = '' if expected == count else f', of which {expected} count here'
    name = path.rpartition('.')[2]
    raise UsageError(
        f'{path}={value}, but the data set of {classes.loader} has {count} classes'
        f'{which}: {listed(classes.names)}. Set {name} of every head to {expected}.'
    )


def _heads(path: str, settings: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield path and settings of every part of a model whose name has ``head``."""
    if isinstance(settings, (list, tuple)):
        for i, item in enumerate(settings):
            yield from _heads(f'{path}[{i}]', item)
    elif isinstance(settings, Mapping):
        last = path.rpartition('.')[2]
        if 'head' in last and type_name(settings) not in (*OTHER_HEADS, 'None'):
            yield path, settings
        for key, value in settings.items():
            if key not in OTHER_CLASSES and isinstance(value, (Mapping, list, tuple)):
                yield from _heads(f'{path}.{key}', value)


def _numbers(
    path: str, head: Mapping[str, Any], models: Registry
) -> Iterator[tuple[str, int]]:
    """Yield numbers of classes of a head: those of the config, else the defaults."""
    cls = find_class(models, head.get('type'))
    accepted = {} if cls is None else parameters(cls) or signature(cls).parameters
    other = head.get('class_agnostic') or path.endswith('.semantic_head')
    for name in NUMBERS[1:] if other else NUMBERS:
        default = getattr(accepted.get(name), 'default', None)
        value = head.get(name, default)
        if type(value) is int:
            yield name, value


def _check_weights(path: str, head: Mapping[str, Any]) -> None:
    """Check ``class_weight`` of losses, which some heads give one for no object."""
    count = head.get('num_classes')
    for name in ('loss_decode', 'loss_cls', 'loss'):
        losses = head.get(name) or ()
        for loss in [losses] if isinstance(losses, Mapping) else losses:
            if not isinstance(loss, Mapping) or type(count) is not int:
                continue
            number, weights = loss.get('num_classes'), loss.get('class_weight')
            if type(number) is int and number != count:
                raise UsageError(
                    f'{path}.{name}.num_classes={number} must be {path}.num_classes='
                    f'{count}.'
                )
            if not isinstance(weights, (list, tuple)):
                continue
            if len(weights) not in (count, count + 1):
                raise UsageError(
                    f'{path}.{name}.class_weight has {len(weights)} values, but '
                    f'{path}.num_classes={count}; give one per class.'
                )


def _check_mixup(cfg: Config, classes: Classes) -> None:
    """Check ``data_preprocessor.num_classes``, which mixup and CutMix need."""
    model = cfg.model
    part = ('model.' if 'data_preprocessor' in model else '') + 'data_preprocessor'
    settings = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mixes = (model.get('train_cfg') or {}).get('augments')
    one_hot = mixes or settings.get('batch_augments') or settings.get('to_onehot')
    number, count = settings.get('num_classes'), len(classes.names)
    if one_hot and number is not None and number != count:
        raise UsageError(
            f'{part}.num_classes={number}, which mixup needs, but the data set of '
            f'{classes.loader} has {count} classes: {listed(classes.names)}. Set it '
            f'and model.head.num_classes to {count}.'
        )


def _check_topk(cfg: Config, count: int) -> None:
    head = cfg.model.get('head') or {}
    places = [('model.head', head)] if head.get('cal_acc') else []
    for name in ('val_evaluator', 'test_evaluator'):
        places += metrics_of(cfg, name)
    for path, settings in places:
        topk = settings.get('topk', 1)
        largest = max(topk) if isinstance(topk, (list, tuple)) and topk else topk
        if type(largest) is int and largest > count:
            raise UsageError(
                f'{path}.topk={topk}, but there are {count} classes; set topk=(1,).'
            )


def metrics_of(cfg: Config, evaluator: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return path and settings of every metric of an evaluator."""
    settings = cfg.get(evaluator) or ()
    path = evaluator
    if isinstance(settings, Mapping) and 'metrics' in settings:
        settings, path = settings['metrics'], f'{evaluator}.metrics'
    if isinstance(settings, Mapping):
        return [(path, settings)]
    return [
        (f'{path}[{i}]', x) for i, x in enumerate(settings) if isinstance(x, Mapping)
    ]
