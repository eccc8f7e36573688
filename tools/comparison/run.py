"""Train the models of a comparison, and write what is known of all of them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark.report import environment, record
from filelock import FileLock
from mmengine.device import get_device
from training.costs import Cost
from training.files import write_json, write_text
from training.folder import RESULT, training_lock
from training.runner import in_new_process

from comparison import report
from comparison.comparison import Comparison
from comparison.protocol import Protocol
from comparison.training import (
    Training,
    find_start,
    read_results,
    read_values,
    train,
)

RANDOM = 'from random weights'


@dataclass(frozen=True)
class Run:
    """A comparison by a protocol, in a folder that processes may share.

    Args:
        comparison: The models.
        protocol: Their budget.
        costs: Cost of each model by its name.
        out: Folder, with one of each protocol and budget.
        threads: Number of threads.
        pretrained: Where backbones start from, as in `find_start`.
    """

    comparison: Comparison
    protocol: Protocol
    costs: dict[str, Cost]
    out: Path
    threads: int
    pretrained: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of this protocol, budget and start."""
        name = f'{self.protocol.name}-{self.protocol.budget:g}'
        if self.pretrained:
            source = self.pretrained.resolve()
            parts = source.parts[-2:]
            if source.is_file():  # of a row and seed in the folder of a comparison
                parts = source.with_suffix('').parts[-4:]
            name += f'-from-{"-".join(x for x in parts if x != source.anchor)}'
        return self.out / name

    def train(self, name: str, seed: int) -> None:
        """Train a model, unless it is finished or another process trains it."""
        folder = self.folder / name / f'seed-{seed}'
        label = f'{self.comparison.name} {name}, seed {seed}'
        with training_lock(folder, label) as locked:
            if not locked:
                return
            if (folder / RESULT).is_file():
                print(f'{label}: finished', flush=True)
                return
            training = Training(
                self.comparison.models[name],
                self.protocol.iterations(self.costs[name]),
                seed,
                folder,
                self.threads,
                self.pretrained and find_start(self.pretrained, name, seed),
            )
            in_new_process(train, training, f'{label:34}')

    def rows(self) -> Iterator[report.Row]:
        """Yield what is known of each model with at least one result."""
        for name, config in self.comparison.models.items():
            cost, folder = self.costs[name], self.folder / name
            if results := read_results(folder):
                yield dict(
                    name=name,
                    config=config,
                    **asdict(cost),
                    iterations=self.protocol.iterations(cost),
                    results={seed: asdict(x) for seed, x in results.items()},
                    curves=[read_values(folder / f'seed-{seed}') for seed in results],
                )

    def write(self) -> list[Path]:
        """Write the finished training runs as a table, a record and a plot."""
        names = ('table.md', 'results.json', 'plot.png')
        table, results, plot = paths = [self.folder / name for name in names]
        with FileLock(self.folder / 'report.lock'):
            rows = list(self.rows())
            if not rows:
                return []
            write_text(table, report.table(rows))
            write_json(results, self.record(rows))
            title = f'{self.comparison.title}, {self.protocol} each {self.start}'
            report.plot(rows, plot, f'{title}\n{report.seeds_of(rows)}')
        return paths

    @property
    def start(self) -> str:
        """Weights at the start of all models."""
        return f'from backbones of {self.pretrained}' if self.pretrained else RANDOM

    def record(self, rows: list[report.Row]) -> dict[str, Any]:
        """Return a record as in docs/measurements, with all that is known."""
        device = torch.device(get_device())
        return dict(
            title=f'Models on {self.comparison.title}, by {self.protocol.name}',
            what=f'{self.protocol} each {self.start}, on the test data; '
            f'{report.seeds_of(rows)}.',
            **record(device),
            figures={row['name']: report.figures(row) for row in rows},
            configs={row['name']: row['config'] for row in rows},
            environment=environment(device),
            rows=json.loads(json.dumps(rows)),
        )
