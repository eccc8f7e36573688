"""Train the variants of a study, and write the results."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmark.report import environment, record
from filelock import FileLock
from training.costs import Cost
from training.files import write_json, write_text
from training.folder import RESULT, keep_settings, training_lock
from training.length import Length
from training.runner import Trained, in_new_process, train

from ablation import report
from ablation.study import Study, Variant, variant_config


def train_variants(
    study: Study,
    costs: list[Cost],
    *,
    length: Length,
    seeds: list[int],
    pretrained: str | None,
    out: Path,
) -> Iterator[list[report.Row]]:
    """Train every variant with every seed, in a folder that processes may share.

    Args:
        study: The variants.
        costs: Cost of each variant.
        length: Length of each training.
        seeds: Random seeds.
        pretrained: Checkpoint that backbones start from.
        out: Folder, with one of each variant and seed.

    Yields:
        After each training, the results of the variants that are finished.
    """
    for i, variant in enumerate(study.variants):
        label = f'{i + 1}/{len(costs)} {variant.name}'
        for seed in seeds:
            folder = variant_folder(out, variant, seed)
            with training_lock(folder, f'{label}, seed {seed}') as locked:
                if not locked:
                    continue
                arguments = (study, variant, length, seed, pretrained)
                in_new_process(train_variant, arguments, folder, f'{label:24}')
            yield finished_rows(study, costs, seeds, out)


def variant_folder(out: Path, variant: Variant, seed: int) -> Path:
    """Return the folder of the training of a variant."""
    return out / variant.name / f'seed-{seed}'


def finished_rows(
    study: Study, costs: list[Cost], seeds: list[int], out: Path
) -> list[report.Row]:
    """Return the results of variants with all seeds; none without the reference."""
    rows: list[report.Row] = []
    for variant, cost in zip(study.variants, costs, strict=True):
        files = [variant_folder(out, variant, seed) / RESULT for seed in seeds]
        if all(file.is_file() for file in files):
            rows.append(variant_row(variant, cost, list(map(read_result, files))))
        elif variant is study.variants[0]:
            return []
    return rows


def variant_row(variant: Variant, cost: Cost, trained: list[Trained]) -> report.Row:
    """Return what is known of a variant."""
    return dict(
        name=variant.name,
        about=variant.about,
        changes=variant.changes,
        **asdict(cost),
        metric=trained[0].metric,
        values=[result.value for result in trained],
        train_seconds=[result.train_seconds for result in trained],
    )


def read_result(file: Path) -> Trained:
    """Read the result of a training."""
    return Trained(**json.loads(file.read_text()))


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
    result = work_dir / RESULT
    if result.is_file():
        print(f'{label} finished: {result}', flush=True)
        return read_result(result)
    _, trained = train(cfg, work_dir, label, resume=True)
    write_json(result, asdict(trained))
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
    content = dict(
        title=study.title,
        what=f'{study.config}, {length}, seeds {settings["seeds"]}',
        **record(torch.device('cpu')),
        figures=report.all_figures(rows),
        study=study.name,
        config=study.config,
        changes=study.changes,
        **{length.unit: length.number},
        **settings,
        environment=environment(torch.device('cpu')),
        variants=rows,
    )
    with FileLock(out / 'report.lock'):
        write_text(table, report.table(rows))
        write_json(results, content)
        report.plot(rows, plot, f'{study.title}\n{Path(study.config).stem}, {length}')
    return [table, results, plot]
