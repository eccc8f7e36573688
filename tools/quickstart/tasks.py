"""The training runs of the quickstart, their order and results."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ablation.training import Trained, in_new_process, start_from, train
from benchmark.report import align, environment, record

from mmsparse.apis import read_config
from mmsparse.models.backbones import BACKBONES
from quickstart import report

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
# Tasks in the order of training, and the names of their configs by backbone.
TASKS = {
    'classification': '{}-nano_*_digits.py',
    'segmentation': 'fpn_{}-nano_*_digits.py',
    'detection': 'focus-detr_{}-nano_*_digits.py',
}
FAMILIES = tuple(
    family
    for family in BACKBONES
    if all(any(CONFIGS.glob(f'*/{name.format(family)}')) for name in TASKS.values())
)


@dataclass(frozen=True)
class Result(Trained):
    """Result of a task.

    Args:
        task: Name of the task.
        config: Path of the config in the repository.
    """

    task: str
    config: str


def find_configs(family: str) -> dict[str, Path]:
    """Return the config of every task."""
    return {
        task: next(CONFIGS.glob(f'*/{name.format(family)}'))
        for task, name in TASKS.items()
    }


def run_tasks(family: str, out: Path) -> tuple[list[Result], list[report.Row]]:
    """Train all tasks; each backbone starts from that of the task before."""
    results, rows = [], []
    for task, config in find_configs(family).items():
        label = f'{len(results) + 1}/{len(TASKS)} {task}'
        pretrained = results[-1].checkpoint if results else None
        arguments = (task, config, out / task, pretrained, label)
        result, row = in_new_process(run_task, *arguments)
        results.append(result)
        rows.append(row)
    return results, rows


def run_task(
    task: str, config: Path, work_dir: Path, pretrained: str | None, label: str
) -> tuple[Result, report.Row]:
    """Train and evaluate one model, and draw its predictions."""
    cfg = read_config(str(config))
    if pretrained:
        start_from(cfg, pretrained)
    runner, trained = train(cfg, work_dir, f'{label:20}')
    path = config.relative_to(ROOT).as_posix()
    return Result(**asdict(trained), task=task, config=path), report.predict(
        runner, task
    )


def write(
    out: Path, family: str, results: list[Result], rows: list[report.Row]
) -> list[Path]:
    """Print a table of the results; write a record of measurements and the figure."""
    figures = {result.task: columns(result) for result in results}
    titles = ['', *next(iter(figures.values()))]
    cells = [[task, *row.values()] for task, row in figures.items()]
    print(f'\n{align([titles, *cells])}\n')
    content = dict(
        title=f'Quickstart with {family}',
        what='Three nano models on the digits; each task starts from the backbone of '
        'the task before.',
        **record(torch.device('cpu')),
        figures=figures,
        configs={result.task: result.config for result in results},
        environment=environment(torch.device('cpu')),
        results=[asdict(result) for result in results],
    )
    summary, image = out / 'summary.json', out / 'report.png'
    summary.write_text(json.dumps(content, indent=2) + '\n')
    report.write(image, rows)
    return [summary, image]


def columns(result: Result) -> dict[str, str]:
    """Return the columns of a task's table row."""
    minutes, seconds = divmod(round(result.train_seconds), 60)
    return {
        'model': Path(result.config).stem,
        'metric': result.metric,
        'result': f'{result.value:.1f}',
        'training': f'{minutes}:{seconds:02} min',
        'parameters': f'{result.parameters / 1e6:.2f} M',
    }
