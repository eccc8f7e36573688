"""A study: a config and the variants of it to compare."""

from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_origin

import yaml
from mmengine.config import Config
from training.length import UNITS, Length
from training.start import start_from

from mmsparse.apis import find_host, read_config
from mmsparse.checks import check_config, check_data
from mmsparse.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / 'configs' / 'ablations'


@dataclass(frozen=True)
class Variant:
    """One model of a study.

    Args:
        name: Name in reports, and of its folder.
        about: Description in one line.
        changes: Settings that differ from the study's config, by dotted key. A dict
            replaces the previous value.
    """

    name: str
    about: str
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Variants to compare.

    Args:
        name: Name of its file.
        title: Title of the plot.
        config: Config of all variants: a path from the working directory or from the
            repository.
        length: Length of each training; the file has it as epochs or iterations.
        variants: The first is the reference.
        changes: Settings of all variants, none of which changes them itself.
    """

    name: str
    title: str
    config: str
    length: Length
    variants: tuple[Variant, ...]
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for variant in self.variants:
            for key, own in product(self.changes, variant.changes):
                if f'{key}.'.startswith(f'{own}.') or f'{own}.'.startswith(f'{key}.'):
                    raise UsageError(
                        f'{key} is not a setting of all variants: {variant.name} '
                        f'changes {own}; change it in a copy of the study'
                    )

    def change_all(self, changes: dict[str, Any]) -> 'Study':
        """Return this study with further settings of all variants.

        Args:
            changes: The settings by dotted key.

        Returns:
            The study.

        Raises:
            UsageError: A variant changes one of them itself.
        """
        return replace(self, changes=self.changes | changes)


def read_study(name: str) -> Study:
    """Read a study by name or file; raise UsageError if it is missing or invalid."""
    path = STUDIES / f'{name}.yml'
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        raise UsageError(f'STUDY: no such file: {name}, and none in {STUDIES}')
    try:
        content = yaml.safe_load(path.read_text())
        variants = content.pop('variants').items()
        study = Study(
            name=path.stem,
            length=take_length(path, content),
            variants=tuple(Variant(name, **settings) for name, settings in variants),
            **content,
        )
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f'{path} must have title, config, epochs or iterations, and variants, and '
            f'each variant about and changes; it may have changes of all variants: '
            f'{error!r}'
        ) from error
    if not study.variants:
        raise UsageError(f'{path} has no variants')
    for part in (study, *study.variants):
        check_types(path, part)
    return study


def take_length(path: Path, content: dict[str, Any]) -> Length:
    """Take the length out of the content of a study."""
    units = content.keys() & UNITS
    if len(units) != 1:
        raise KeyError('epochs or iterations, and not both')
    (unit,) = units
    number = content.pop(unit)
    if type(number) is not int:
        raise UsageError(f'{path}: {unit} must be of type int; got {number!r}')
    return Length(number, unit)


def check_types(path: Path, part: Study | Variant) -> None:
    """Raise UsageError unless all settings of a study have the annotated types."""
    for setting in fields(part):
        expected = get_origin(setting.type) or setting.type
        value = getattr(part, setting.name)
        if type(value) is not expected:
            raise UsageError(
                f'{path}: {setting.name} must be of type {expected.__name__}; '
                f'got {value!r}'
            )


def variant_config(
    study: Study, variant: Variant, length: Length, seed: int, pretrained: str | None
) -> Config:
    """Return the config of a variant; raise UsageError if it cannot be trained."""
    changes = {
        key: dict(value, _delete_=True) if isinstance(value, dict) else value
        for key, value in (study.changes | variant.changes).items()
    }
    path = Path(study.config)
    cfg = read_config(str(path if path.is_file() else ROOT / path), changes)
    cfg.randomness = dict(seed=seed)
    if pretrained:
        start_from(cfg, pretrained)
    host = find_host(cfg)
    check_config(cfg, host)
    length.apply(cfg)
    check_data(cfg, host)
    return cfg
