"""What an architecture, given by name or as a dict, may say."""

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of values.

    Args:
        text: What they are, for people.
        accepts: Says whether a value is one.
    """

    text: str
    accepts: Callable[[Any], bool]


class Setting(NamedTuple):
    """A setting of an architecture.

    Args:
        kind: What its value may be, or that of each stage.
        default: Its value if an architecture does not say. Without one, an architecture
            must say it, by one value a stage.
        by_stage: Whether there may be one value a stage.
    """

    kind: Kind
    default: Any = ...
    by_stage: bool = False

    @property
    def required(self) -> bool:
        """Whether an architecture must say it."""
        return self.default is ...


def integer(least: int) -> Kind:
    """Integers from ``least`` on."""
    return Kind(
        f'an integer of at least {least}', lambda x: _is_integer(x) and x >= least
    )


def one_of(choices: Collection[Any]) -> Kind:
    """Any of ``choices``."""
    return Kind(
        f'one of {sorted(choices)}', lambda x: isinstance(x, str) and x in choices
    )


def optional(kind: Kind) -> Kind:
    """``None``, or a value of a kind."""
    return Kind(f'None or {kind.text}', lambda x: x is None or kind.accepts(x))


def _is_integer(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)


INTEGER = Kind('an integer', _is_integer)
FLAG = Kind('True or False', lambda x: isinstance(x, bool))
NUMBER = Kind('a finite number', _is_number)
POSITIVE = Kind('a positive number', lambda x: _is_number(x) and x > 0)
RATE = Kind('a number in [0, 1)', lambda x: _is_number(x) and 0 <= x < 1)
ODD = Kind('an odd integer from 1 on', lambda x: _is_integer(x) and x > 0 and x % 2)
KERNEL = Kind(
    '0 or an odd integer', lambda x: x == 0 and _is_integer(x) or ODD.accepts(x)
)
MAPPING = Kind('a dict', lambda x: isinstance(x, Mapping))


def check_kind(name: str, value: Any, kind: Kind) -> None:
    """Raise ValueError unless a value is of a kind.

    Args:
        name: What the user calls it.
        value: The value given.
        kind: What it may be.

    Raises:
        ValueError: It is something else.
    """
    if not kind.accepts(value):
        raise ValueError(f'{name} must be {kind.text}; got {value!r}.')


def resolve_arch(
    arch: str | Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Setting],
) -> dict[str, Any]:
    """Look an architecture up, or check one that is given as a dict.

    Args:
        arch: A name in ``known``, or the architecture itself: all of its settings, or
            such a name under ``base`` and those that differ.
        known: The published architectures by name.
        settings: What it may say.

    Returns:
        Every setting, those that are given by stage as tuples of equal length.

    Raises:
        ValueError: The name is unknown, a setting is missing, unknown or of another
            kind, or the numbers of stages differ.
    """
    by_name = not isinstance(arch, Mapping)
    given = dict(base=arch) if by_name else dict(arch)
    if 'base' in given:
        base = given.pop('base')
        if not isinstance(base, str) or base not in known:
            name = 'arch' if by_name else "arch['base']"
            raise ValueError(f'{name} must be one of {sorted(known)}; got {base!r}.')
        given = {**known[base], **given}
    missing = [name for name, x in settings.items() if x.required and name not in given]
    unknown = [name for name in given if name not in settings]
    if missing or unknown:
        needed = [name for name, x in settings.items() if x.required]
        raise ValueError(
            f'An arch dict needs the settings {sorted(needed)}, or the name of an arch '
            f'that has them as its base, and may have '
            f'{sorted(set(settings) - set(needed))}; missing: {sorted(missing)}, '
            f'unknown: {sorted(map(str, unknown))}.'
        )
    resolved = {
        name: _check(name, given.get(name, x.default), x)
        for name, x in settings.items()
    }
    lengths = {name: len(x) for name, x in resolved.items() if isinstance(x, tuple)}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(
            f'All per-stage settings of arch need the same number of stages; got '
            f'{lengths}.'
        )
    return resolved


def _check(name: str, value: Any, setting: Setting) -> Any:
    """The value, one value a stage as a tuple."""
    by_stage = setting.required or setting.by_stage
    if by_stage and isinstance(value, (tuple, list)):
        for i, own in enumerate(value):
            check_kind(f'{name}[{i}]', own, setting.kind)
        return tuple(value)
    if setting.required:
        raise ValueError(
            f'{name} must be a list of one value a stage, each {setting.kind.text}; '
            f'got {value!r}.'
        )
    if value is not setting.default:
        check_kind(name, value, setting.kind)
    return value
