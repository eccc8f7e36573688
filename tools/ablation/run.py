"""Train the variants of a study, and write the results."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from benchmark.report import environment, record
from filelock import FileLock
from training.costs import Cost
from training.files import write_json, write_text
from training.folder import RESULT, check_settings, keep_settings, training_lock
from training.length import Length
from training.runner import Trained, in_new_process, train

from ablation import report
from ablation.costs import measure_costs
from ablation.study import Study, Variant, variant_config


@dataclass(frozen=True)
class Run:
    """A study in a folder that processes may share.

    Args:
        study: The variants.
        length: Length of each training.
        seeds: Random seeds.
        pretrained: Checkpoint that backbones start from.
        out: Folder, with one of each variant and seed.
    """

    study: Study
    length: Length
    seeds: list[int]
    pretrained: str | None
    out: Path

    def prepare(self) -> list[Cost]:
        """Build and measure all variants, which finds mistakes before training.

        Returns:
            The cost of each variant.

        Raises:
            UsageError: A variant is wrong, or its folder has other settings.
        """
        for variant in self.study.variants:
            for seed in self.seeds:
                folder = self.folder(variant, seed)
                if folder.is_dir():
                    cfg = variant_config(*self.arguments(variant, seed))
                    check_settings(cfg, folder)
        return measure_costs(self.study, self.length, self.pretrained)

    def arguments(self, variant: Variant, seed: int) -> tuple:
        """Return the arguments of `variant_config` for a training."""
        return self.study, variant, self.length, seed, self.pretrained

    def folder(self, variant: Variant, seed: int) -> Path:
        """Return the folder of a training."""
        return self.out / variant.name / f'seed-{seed}'

    def result(self, variant: Variant, seed: int) -> Path:
        """Return the file with the result of a training, once it is finished."""
        return self.folder(variant, seed) / RESULT

    def train(self, variant: Variant, seed: int) -> None:
        """Train a variant, unless it is finished or another process trains it."""
        number = self.study.variants.index(variant) + 1
        label = f'{number}/{len(self.study.variants)} {variant.name}'
        folder = self.folder(variant, seed)
        with training_lock(folder, f'{label}, seed {seed}') as locked:
            if not locked:
                return
            if self.result(variant, seed).is_file():
                print(f'{label}, seed {seed}: finished', flush=True)
                return
            arguments = self.arguments(variant, seed)
            in_new_process(train_variant, arguments, folder, f'{label:24}')

    @property
    def finished(self) -> list[Variant]:
        """Variants that are trained with all seeds."""
        return [
            variant
            for variant in self.study.variants
            if all(self.result(variant, seed).is_file() for seed in self.seeds)
        ]

    def row(self, variant: Variant, cost: Cost) -> report.Row:
        """Return what is known of a finished variant."""
        files = [self.result(variant, seed) for seed in self.seeds]
        trained = [Trained(**json.loads(file.read_text())) for file in files]
        return dict(
            name=variant.name,
            about=variant.about,
            changes=variant.changes,
            **asdict(cost),
            metric=trained[0].metric,
            values=[result.value for result in trained],
            train_seconds=[result.train_seconds for result in trained],
        )

    def write(self, costs: list[Cost]) -> list[Path]:
        """Write finished variants as a table, a record of measurements and a plot.

        Args:
            costs: Cost of each variant.

        Returns:
            The files; none before the first variant, the reference, is finished.
        """
        names = ('table.md', 'results.json', 'plot.png')
        table, results, plot = paths = [self.out / name for name in names]
        study, variants = self.study, self.study.variants
        with FileLock(self.out / 'report.lock'):
            finished = self.finished
            if variants[0] not in finished:
                return []
            rows = [
                self.row(variant, cost)
                for variant, cost in zip(variants, costs, strict=True)
                if variant in finished
            ]
            write_text(table, report.table(rows))
            content = dict(
                title=study.title,
                what=f'{study.config}, {self.length}, seeds {self.seeds}',
                **record(torch.device('cpu')),
                figures=report.all_figures(rows),
                study=study.name,
                config=study.config,
                changes=study.changes,
                **{self.length.unit: self.length.number},
                seeds=self.seeds,
                pretrained=self.pretrained,
                environment=environment(torch.device('cpu')),
                variants=rows,
            )
            write_json(results, content)
            title = f'{study.title}\n{Path(study.config).stem}, {self.length}'
            report.plot(rows, plot, title)
        return paths


def train_variant(arguments: tuple, work_dir: Path, label: str) -> None:
    """Train and evaluate a variant, or resume its training; write the result.

    Args:
        arguments: Those of `variant_config`.
        work_dir: Folder for log, checkpoints and results.
        label: Text before the progress bar.
    """
    cfg = variant_config(*arguments)
    keep_settings(cfg, work_dir)
    _, trained = train(cfg, work_dir, label, resume=True)
    write_json(work_dir / RESULT, asdict(trained))
