"""A comparison: the configs of models for one data set, and how long they train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from training.length import train_by_iterations

from mmsparse.apis import find_host, read_config
from mmsparse.checks import check_config, check_data
from mmsparse.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
COMPARISONS = ROOT / 'configs' / 'comparisons'
POINTS = 3  # of a curve: evaluations of a training
CHECKPOINTS = 8  # of a training: at most this part is lost when it is interrupted


@dataclass(frozen=True)
class Comparison:
    """Models to compare.

    Args:
        name: Name of its file.
        title: Title of table and plot.
        iterations: Iterations of all models, or of one with `minutes`.
        minutes: Training time of all models, instead of the same number of iterations.
        models: Config of each model by the name of its row: a path from the working
            directory or from the repository.
    """

    name: str
    title: str
    iterations: int
    minutes: float
    models: dict[str, str]


FIELDS = {  # of a file: type, and what it must be
    'title': (str, 'a text'),
    'iterations': (int, 'a positive whole number'),
    'minutes': ((int, float), 'a positive number'),
    'models': (dict, 'configs by name'),
}


def read_comparison(name: str) -> Comparison:
    """Read a comparison by name or file; raise UsageError if it is missing or wrong."""
    path = COMPARISONS / f'{name}.yml'
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        raise UsageError(f'DATA_SET: no such file: {name}, and none in {COMPARISONS}')
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f'{path} is no YAML: {error}') from error
    check_content(path, content)
    return Comparison(name=path.stem, **content)


def check_content(path: Path, content: Any) -> None:
    """Raise UsageError unless a file has all fields of a comparison, and no others."""
    if not isinstance(content, dict) or content.keys() != FIELDS.keys():
        given = sorted(content) if isinstance(content, dict) else content
        raise UsageError(f'{path} must have {", ".join(FIELDS)}; got {given}')
    for field, (kind, text) in FIELDS.items():
        if not isinstance(content[field], kind) or not content[field]:
            raise UsageError(f'{path}: {field} must be {text}; got {content[field]!r}')


def choose_rows(comparison: Comparison, names: Sequence[str] | None) -> list[str]:
    """Return the chosen rows in their order; UsageError lists all if one is unknown."""
    unknown = [name for name in names or () if name not in comparison.models]
    if unknown:
        raise UsageError(
            f'--rows: {comparison.name} has no {", ".join(unknown)}; its rows are '
            f'{", ".join(comparison.models)}'
        )
    return [name for name in comparison.models if names is None or name in names]


def training_config(path: str, iterations: int, seed: int) -> Config:
    """Return the config of a training; raise UsageError if it cannot be trained.

    Args:
        path: Config of the model.
        iterations: Length of the training, to which the learning rate schedule fits.
        seed: Random seed.

    Returns:
        The config, which validates on the test data: nothing is chosen by them.
    """
    cfg = read_config(path if Path(path).is_file() else str(ROOT / path))
    train_by_iterations(cfg, iterations)
    cfg.train_cfg.val_interval = -(-iterations // POINTS)
    cfg.default_hooks.checkpoint.update(
        interval=-(-iterations // CHECKPOINTS), max_keep_ckpts=1
    )
    cfg.val_dataloader, cfg.val_evaluator = cfg.test_dataloader, cfg.test_evaluator
    cfg.val_cfg = dict(type='ValLoop')
    cfg.randomness = dict(seed=seed)
    host = find_host(cfg)
    check_config(cfg, host)
    check_data(cfg, host)
    return cfg
