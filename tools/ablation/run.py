"""Train the variants of a study, and write the results."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmark.report import environment, record
from training.costs import Cost
from training.folder import keep_settings
from training.length import Length
from training.runner import Trained, in_new_process, train

from ablation import report
from ablation.study import Study, variant_config


def train_variants(
    study: Study,
    costs: list[Cost],
    *,
    length: Length,
    seeds: list[int],
    pretrained: str | None,
    out: Path,
) -> Iterator[report.Row]:
    """Train every variant with every seed; yield the results of one after the other."""
    for i, (variant, cost) in enumerate(zip(study.variants, costs, strict=True)):
        label = f'{i + 1}/{len(costs)} {variant.name}'
        trained = [
            in_new_process(
                train_variant,
                (study, variant, length, seed, pretrained),
                out / variant.name / f'seed-{seed}',
                f'{label:24}',
            )
            for seed in seeds
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


def train_variant(arguments: tuple, work_dir: Path, label: str) -> Trained:
    """Train a variant, or read its results if it is finished.

    Args:
        arguments: Those of `variant_config`.
        work_dir: Folder for log, checkpoints and results.
        label: Text before the progress bar.

    Returns:
        The result.
    """
    cfg = variant_config(*arguments)
    keep_settings(cfg, work_dir)
    result = work_dir / 'result.json'
    if result.is_file():
        print(f'{label} finished: {result}', flush=True)
        return Trained(**json.loads(result.read_text()))
    _, trained = train(cfg, work_dir, label, resume=True)
    result.write_text(json.dumps(asdict(trained), indent=2) + '\n')
    return trained


def write(
    out: Path,
    study: Study,
    length: Length,
    settings: dict[str, Any],
    rows: list[report.Row],
) -> list[Path]:
    """Write finished variants as a table, a record of measurements and a plot."""
    table, results, plot = (out / x for x in ('table.md', 'results.json', 'plot.png'))
    table.write_text(report.table(rows))
    content = dict(
        title=study.title,
        what=f'{study.config}, {length}, seeds {settings["seeds"]}',
        **record(torch.device('cpu')),
        figures=report.all_figures(rows),
        study=study.name,
        config=study.config,
        **{length.unit: length.number},
        **settings,
        environment=environment(torch.device('cpu')),
        variants=rows,
    )
    results.write_text(json.dumps(content, indent=2) + '\n')
    report.plot(rows, plot, f'{study.title}\n{Path(study.config).stem}, {length}')
    return [table, results, plot]
