"""Train the variants of a model on the digits, and compare metric and cost.

A study is a file of configs/ablations, or a file of your own like those: a
configuration, and for each variant the settings that differ. Variants that are finished
are not trained again, and one that was stopped goes on from its last epoch. Written
after every variant are table.md, results.json and plot.png.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_origin

import torch
import yaml
from ablation import report
from benchmark import Candidate, Stopwatch, measure
from benchmark.report import environment
from mmengine.config import Config
from mmengine.runner import Runner
from quickstart.trainings import (
    Trained,
    check_folder,
    check_start,
    in_new_process,
    start_from,
    train,
)

from mmsparse.analysis.flops import count
from mmsparse.apis import check_data, check_pretrained, read_config
from mmsparse.errors import UsageError, config_errors

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / 'configs' / 'ablations'
ROUNDS = 10  # of timed iterations
ITERATION = 'iteration'


@dataclass(frozen=True)
class Variant:
    """One model of a study.

    Args:
        name: Its name, and that of its folder.
        about: What it is, in one line.
        changes: Settings that differ from the study's configuration, by dotted key. A
            dict takes the place of what was there.
    """

    name: str
    about: str
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        name: Name of its file.
        title: Of the picture.
        config: The configuration that all variants start from, a file from where the
            command runs or of the repository.
        epochs: How long they are trained.
        variants: The first is what the others are compared with.
    """

    name: str
    title: str
    config: str
    epochs: int
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Cost:
    """What a variant costs.

    Args:
        macs: Multiply-adds of one validation picture, all of the model.
        iteration_seconds: Median time of a training iteration, measured in turns with
            the other variants.
        parameters: Number of parameters.
    """

    macs: int
    iteration_seconds: float
    parameters: int


def main() -> None:
    args = parse_args()
    try:
        study = read_study(args.study)
        out = Path(args.out or Path('work_dirs', 'ablations', study.name))
        check_folder(out)
        epochs = args.epochs if args.epochs is not None else study.epochs
        if epochs < 1:
            raise UsageError(f'--epochs must be at least 1; got {epochs}')
        costs = in_new_process(measure_costs, study, epochs, args.pretrained)
        described = dict(
            study=study.name,
            title=study.title,
            config=study.config,
            epochs=epochs,
            seeds=args.seeds,
            pretrained=args.pretrained,
            commit=commit(),
            environment=environment(torch.device('cpu')),
        )
        rows = []
        for row in train_variants(study, costs, epochs, args, out):
            rows.append(row)
            written = write(out, described, rows)
    except UsageError as error:
        sys.exit(f'error: {error}')
    print(written[0].read_text())
    print('\n'.join(map(str, written)))


def parse_args() -> argparse.Namespace:
    names = ', '.join(sorted(path.stem for path in STUDIES.glob('*.yml')))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', metavar='STUDY', help=f'one of {names}; or a file')
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder for all that is written; work_dirs/ablations/STUDY if not given',
    )
    parser.add_argument(
        '--epochs', type=int, metavar='N', help="how long each trains; the study's"
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        metavar='SEED',
        help='each variant is trained once with each of them; 0 by default',
    )
    parser.add_argument(
        '--pretrained',
        metavar='CHECKPOINT',
        help='the backbones start from that of this checkpoint; it must have all '
        "parameters of the first variant's, others may differ",
    )
    return parser.parse_args()


def read_study(name: str) -> Study:
    """Read a study by its name or its file; raises UsageError if it is none."""
    path = STUDIES / f'{name}.yml'
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        raise UsageError(f'STUDY: no such file: {name}, and none in {STUDIES}')
    try:
        content = yaml.safe_load(path.read_text())
        variants = content.pop('variants').items()
        study = Study(
            name=path.stem,
            variants=tuple(Variant(name, **settings) for name, settings in variants),
            **content,
        )
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f'{path} must have title, config, epochs and variants, and each variant '
            f'about and changes: {error!r}'
        ) from error
    if not study.variants:
        raise UsageError(f'{path} has no variants')
    for part in (study, *study.variants):
        check_types(path, part)
    return study


def check_types(path: Path, part: Study | Variant) -> None:
    """Raise UsageError unless all settings of a study are of their types."""
    for setting in fields(part):
        kind = get_origin(setting.type) or setting.type
        value = getattr(part, setting.name)
        if type(value) is not kind:
            raise UsageError(
                f'{path}: {setting.name} must be of type {kind.__name__}; got {value!r}'
            )


def measure_costs(study: Study, epochs: int, pretrained: str | None) -> list[Cost]:
    """Build and measure all variants; mistakes show before hours of training."""
    warnings.simplefilter('ignore')
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # of torch's profiler
    candidates, macs, parameters = [], [], []
    for variant in study.variants:
        cfg = variant_config(study, variant, epochs, 0, pretrained)
        with TemporaryDirectory() as work_dir, log_level():
            cfg.work_dir = work_dir
            # Runners of one name share a visualizer, and with it a folder that is gone.
            cfg.experiment_name = Path(work_dir).name
            cfg.visualizer = None  # mmdet's has one name for all
            try:
                with config_errors():
                    runner = Runner.from_cfg(cfg)
            except UsageError as error:
                raise UsageError(f'variant {variant.name}: {error}') from error
            if pretrained and variant is study.variants[0]:
                check_start(runner.model.backbone, pretrained)
            runner.model.init_weights()
            macs.append(macs_of(runner))
            candidates.append(training(variant.name, runner))
        parameters.append(sum(x.numel() for x in runner.model.parameters()))
        print(f'{variant.name}: {macs[-1]:,} multiply-adds', flush=True)
    measured = measure(candidates, ROUNDS, torch.device('cpu'))
    seconds = [x.median_seconds(ITERATION) for x in measured]
    return [Cost(*values) for values in zip(macs, seconds, parameters, strict=True)]


def variant_config(
    study: Study, variant: Variant, epochs: int, seed: int, pretrained: str | None
) -> Config:
    """Read the configuration of a variant, ready to run or UsageError."""
    changes = {
        key: dict(value, _delete_=True) if isinstance(value, dict) else value
        for key, value in variant.changes.items()
    }
    path = Path(study.config)
    cfg = read_config(str(path if path.is_file() else ROOT / path), changes)
    if 'max_epochs' not in (cfg.get('train_cfg') or {}):
        raise UsageError(f'{study.config} trains by iterations; a study needs epochs')
    cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = epochs
    cfg.randomness = dict(seed=seed)
    if pretrained:
        start_from(cfg, pretrained)
    check_pretrained(cfg)
    check_data(cfg)
    return cfg


def log_level() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stdout(io.StringIO())


def macs_of(runner: Runner) -> int:
    item = Runner.build_dataloader(runner._test_dataloader).dataset[0]
    batch = {key: [value] for key, value in item.items()}
    # torch's counter hooks into gradients, and fails at a parameter that is the query.
    model = copy.deepcopy(runner.model).eval().requires_grad_(False)
    return count(lambda: model.test_step(batch))


def training(name: str, runner: Runner) -> Candidate:
    """One iteration, always on the same batch."""
    loader = Runner.build_dataloader(runner._train_dataloader, seed=0)
    batch, model = next(iter(loader)), runner.model
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper)

    def run(watch: Stopwatch) -> None:
        model.train()
        with watch.time(ITERATION):
            model.train_step(batch, optimizer)

    return Candidate(name, run)


def train_variants(
    study: Study, costs: list[Cost], epochs: int, args: argparse.Namespace, out: Path
) -> Iterator[report.Row]:
    """Train one variant after the other."""
    for number, (variant, cost) in enumerate(
        zip(study.variants, costs, strict=True), start=1
    ):
        label = f'{number}/{len(costs)} {variant.name}'
        trained = [
            in_new_process(
                run_variant,
                (study, variant, epochs, seed, args.pretrained),
                out / variant.name / f'seed-{seed}',
                f'{label:24}',
            )
            for seed in args.seeds
        ]
        yield dict(
            name=variant.name,
            about=variant.about,
            changes=variant.changes,
            **asdict(cost),
            metric=trained[0].metric,
            values=[result.value for result in trained],
            train_seconds=[result.train_seconds for result in trained],
        )


def run_variant(described: tuple, work_dir: Path, label: str) -> Trained:
    """Train a variant, or read what came of it if it is finished."""
    cfg = variant_config(*described)
    work_dir.mkdir(parents=True, exist_ok=True)
    settings, result = work_dir / 'config.py', work_dir / 'result.json'
    if settings.is_file() and settings.read_text() != cfg.pretty_text:
        raise UsageError(
            f'{work_dir} has a training with other settings; remove it, or choose '
            'another --out'
        )
    if result.is_file():
        print(f'{label} finished: {result}', flush=True)
        return Trained(**json.loads(result.read_text()))
    settings.write_text(cfg.pretty_text)
    _, trained = train(cfg, work_dir, label, resume=True)
    result.write_text(json.dumps(asdict(trained), indent=2) + '\n')
    return trained


def write(out: Path, described: dict, rows: list[report.Row]) -> list[Path]:
    """Write the variants that are finished as a table, as JSON and as a picture."""
    table, results, plot = (out / x for x in ('table.md', 'results.json', 'plot.png'))
    table.write_text(report.table(rows))
    results.write_text(json.dumps({**described, 'variants': rows}, indent=2) + '\n')
    report.plot(rows, plot, described['title'])
    return [table, results, plot]


def commit() -> str | None:
    """That of the clone, with a plus if files differ; None where there is no clone."""
    if not (ROOT / '.git').exists() or shutil.which('git') is None:
        return None
    command = ['git', 'describe', '--always', '--dirty=+', '--exclude=*']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


if __name__ == '__main__':
    main()
