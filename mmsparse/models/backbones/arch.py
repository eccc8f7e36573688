"""Settings of an architecture: dataclasses that are checked from their annotations."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar('T')
PerStage = T | Sequence[T]  # one value for all stages, or one for each


class Requirement(NamedTuple):
    """Requirement on a value; in ``Annotated[type, ...]`` in addition to its type.

    Args:
        text: What the value must be, for error messages.
        accepts: Returns whether a value meets the requirement.
    """

    text: str
    accepts: Callable[[Any], bool]


def at_least(minimum: int) -> Requirement:
    """Return the requirement that an integer is at least ``minimum``."""
    return Requirement(f'an integer of at least {minimum}', lambda x: x >= minimum)


Count = Annotated[int, at_least(1)]
OddSize = Annotated[
    int, Requirement('an odd integer of at least 1', lambda x: x > 0 and x % 2)
]
KernelSize = Annotated[
    int, Requirement('0 or an odd integer', lambda x: x == 0 or x > 0 and x % 2)
]
Positive = Annotated[float, Requirement('a positive number', lambda x: x > 0)]
DropRate = Annotated[float, Requirement('a number in [0, 1)', lambda x: 0 <= x < 1)]
Norm = Literal['batch', 'layer']
Downsampling = Literal['overlapping', 'patches']


@dataclass(frozen=True, kw_only=True)
class Arch:
    """Settings that every architecture has; a family adds its own.

    ``PerStage`` settings are one value for all stages or a list of one value per stage.
    They are checked on construction, from their annotations.

    Args:
        embed_dims: Channels of every stage; its length is the number of stages.
        depths: Number of blocks.
        num_heads: Number of attention heads; divides ``embed_dims``.
        mlp_ratios: Hidden channels of the MLP over ``embed_dims``.

    Raises:
        ValueError: A setting has another type or is out of range, or the lengths of two
            lists differ.
    """

    embed_dims: tuple[Annotated[int, at_least(2)], ...]
    depths: PerStage[Count]
    num_heads: PerStage[Count]
    mlp_ratios: PerStage[Positive] = 4

    def __post_init__(self) -> None:
        for name, hint in _annotations(type(self)).items():
            value = check_setting(name, getattr(self, name), hint)
            object.__setattr__(self, name, value)
        lengths = {name: len(x) for name, x in vars(self).items() if type(x) is tuple}
        if len(set(lengths.values())) > 1 or not self.embed_dims:
            raise ValueError(
                'All per-stage settings of arch need the same number of stages; got '
                f'{lengths}.'
            )

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.embed_dims)

    @classmethod
    def resolve(
        cls, arch: 'str | Mapping[str, Any] | Arch', known: Mapping[str, 'Arch']
    ) -> 'Arch':
        """Return the settings of an architecture.

        Args:
            arch: A name in ``known``, or the settings as an instance or a dict: all of
                them, or such a name under ``base`` and those that differ.
            known: The published architectures by name.

        Returns:
            The settings, the per-stage ones as tuples of one value per stage.

        Raises:
            ValueError: The name is unknown, or a setting is missing, unknown, of
                another type or out of range.
        """
        if isinstance(arch, Mapping):
            settings = cls(**_merged(cls, arch, known))
        else:
            settings = arch if isinstance(arch, cls) else _named(arch, known, 'arch')
        return replace(
            settings,
            **{
                name: expand(getattr(settings, name), settings.num_stages)
                for name, hint in _annotations(cls).items()
                if _of_one_stage(hint)
            },
        )


@dataclass(frozen=True, kw_only=True)
class SizedArch(Arch):
    """Settings of an architecture whose layers are made for an image size.

    Args:
        img_size: Image size that windows and position bias tables are made for; other
            sizes work, too.

    Raises:
        ValueError: See :class:`Arch`; or ``img_size`` is less than the stride of the
            last stage.
    """

    img_size: Count = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 4 * 2 ** (self.num_stages - 1)
        if self.img_size < least:
            raise ValueError(
                f'img_size must be at least {least}, the stride of the last stage; got '
                f'{self.img_size}.'
            )

    def map_size(self, stage: int) -> int:
        """Return the height and width of the feature map of a stage."""
        return self.img_size // 4 // 2**stage


def check_setting(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an annotation.

    Args:
        name: Name of the setting, for error messages.
        value: Value given.
        hint: Annotation: a type, ``Annotated``, ``Literal``, a union or ``PerStage``.

    Returns:
        The value, lists of one value per stage as tuples.

    Raises:
        ValueError: The value does not fit the annotation.
    """
    of_one_stage = _of_one_stage(hint)
    if of_one_stage and isinstance(value, (list, tuple)):
        return tuple(
            check_setting(f'{name}[{i}]', x, of_one_stage) for i, x in enumerate(value)
        )
    if get_origin(hint) is tuple:
        text = _requirement(of_one_stage).text
        raise ValueError(
            f'{name} must be a list of one value per stage, each {text}; got {value!r}.'
        )
    requirement = _requirement(hint)
    if not requirement.accepts(value):
        raise ValueError(f'{name} must be {requirement.text}; got {value!r}.')
    return value


def expand(value: Any, num_stages: int) -> tuple:
    """Return a ``PerStage`` value as a tuple of one value per stage."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_stages


@cache
def _annotations(arch_type: type[Arch]) -> dict[str, Any]:
    hints = get_type_hints(arch_type, include_extras=True)
    return {field.name: hints[field.name] for field in fields(arch_type)}


def _merged(
    arch_type: type[Arch], arch: Mapping[str, Any], known: Mapping[str, Arch]
) -> dict[str, Any]:
    """Return the settings of a dict and of its base; none is missing or unknown."""
    given = dict(arch)
    if 'base' in given:
        base = _named(given.pop('base'), known, "arch['base']")
        given = {**vars(base), **given}
    settings = fields(arch_type)
    needed = sorted(x.name for x in settings if x.default is MISSING)
    optional = sorted(x.name for x in settings if x.default is not MISSING)
    missing = [name for name in needed if name not in given]
    unknown = [str(name) for name in given if name not in (*needed, *optional)]
    if missing or unknown:
        raise ValueError(
            f'An arch dict needs the settings {needed}, or the name of an arch under '
            f"'base', and may have {optional}; missing: {missing}, unknown: "
            f'{sorted(unknown)}.'
        )
    return given


def _named(name: Any, known: Mapping[str, Arch], argument: str) -> Arch:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f'{argument} must be one of {sorted(known)}; got {name!r}.')
    return known[name]


def _of_one_stage(hint: Any) -> Any:
    """Return what a per-stage annotation allows for one stage, None for others."""
    for x in (hint, *get_args(hint)):
        if get_origin(x) in (Sequence, tuple):
            return get_args(x)[0]
    return None


def _requirement(hint: Any) -> Requirement:
    """Return what an annotation requires of a value that is no list."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        base, extra = _requirement(args[0]), args[1]
        return Requirement(extra.text, lambda x: base.accepts(x) and extra.accepts(x))
    if origin is Literal:
        return Requirement(
            f'one of {list(args)}',
            lambda x: any(type(x) is type(choice) and x == choice for choice in args),
        )
    if origin in (Union, UnionType):
        options = [_requirement(x) for x in args if get_origin(x) is not Sequence]
        return Requirement(
            ' or '.join(option.text for option in options),
            lambda x: any(option.accepts(x) for option in options),
        )
    return _TYPES[origin or hint]


def _is_number(x: Any, number_type: type = Real) -> bool:
    return isinstance(x, number_type) and not isinstance(x, bool) and math.isfinite(x)


_TYPES = {
    int: Requirement('an integer', lambda x: _is_number(x, int)),
    float: Requirement('a finite number', _is_number),
    bool: Requirement('True or False', lambda x: isinstance(x, bool)),
    str: Requirement('a string', lambda x: isinstance(x, str)),
    NoneType: Requirement('None', lambda x: x is None),
    Mapping: Requirement('a dict', lambda x: isinstance(x, Mapping)),
}
