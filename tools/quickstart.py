"""Train and evaluate three nano models on the digits scenes, and report.

Classification first; its backbone then starts segmentation, as ImageNet's does for
larger ones, and that of segmentation starts detection. Writes summary.json and
report.png into the output folder.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from quickstart import report as quickstart_report
from quickstart.trainings import (
    Trained,
    check_folder,
    in_new_process,
    start_from,
    train,
)

from mmsparse.apis import read_config
from mmsparse.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Task:
    """One training of the quickstart.

    Args:
        name: Name of the task.
        config: Its configuration, below ``configs``.
    """

    name: str
    config: str


@dataclass(frozen=True)
class Result(Trained):
    """What came of a task.

    Args:
        task: Name of the task.
        model: Name of the configuration.
    """

    task: str
    model: str


# Folder of a backbone's configs to the name of its classifier's.
BACKBONES = dict(
    biformer='biformer-nano_1xb32-9e_digits',
    dat='dat-nano_1xb32-9e_digits',
    shunted_transformer='shunted-nano_1xb32-14e_digits',
)


def tasks(backbone: str) -> tuple[Task, ...]:
    """What is trained, in this order.

    Args:
        backbone: Folder of its configs.

    Returns:
        One task after the other.
    """
    classifier = BACKBONES[backbone]
    name, _, _ = classifier.partition('_')
    return (
        Task('classification', f'{backbone}/{classifier}.py'),
        Task('segmentation', f'{backbone}/fpn_{name}_1xb8-1600i_digits.py'),
        Task('detection', f'focus_detr/focus-detr_{name}_1xb4-4e_digits.py'),
    )


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    try:
        check_folder(out)
    except UsageError as error:
        sys.exit(f'error: {error}')
    out.mkdir(parents=True, exist_ok=True)
    data = [sys.executable, ROOT / 'tools' / 'prepare_digits.py']
    if subprocess.run(data, cwd=ROOT).returncode:
        sys.exit('error: the digits scenes could not be built')

    results, rows = [], []
    plan = tasks(args.backbone)
    for number, task in enumerate(plan, start=1):
        label = f'{number}/{len(plan)} {task.name}'
        pretrained = results[-1].checkpoint if results else None
        result, row = in_new_process(run_task, task, out / task.name, pretrained, label)
        results.append(result)
        rows.append(row)

    summary, report = out / 'summary.json', out / 'report.png'
    summary.write_text(json.dumps([asdict(result) for result in results], indent=2))
    quickstart_report.write(report, rows)
    print_table(results)
    print(f'{summary}\n{report}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--backbone',
        choices=BACKBONES,
        default='biformer',
        help='what learns, in its nano size; biformer by default',
    )
    parser.add_argument(
        '--out', default='work_dirs/quickstart', help='folder for all that is written'
    )
    return parser.parse_args()


def run_task(
    task: Task, work_dir: Path, pretrained: str | None, label: str
) -> tuple[Result, quickstart_report.Row]:
    """Train and evaluate one model, with its log in the work directory."""
    cfg = read_config(str(ROOT / 'configs' / task.config))
    if pretrained:
        start_from(cfg, pretrained)
    runner, trained = train(cfg, work_dir, f'{label:20}')
    row = quickstart_report.predict(runner, task.name)
    model = Path(task.config).stem
    return Result(**asdict(trained), task=task.name, model=model), row


def print_table(results: list[Result]) -> None:
    print(
        f'\n{"task":16}{"model":42}{"metric":10}{"value":>7}{"train":>9}{"params":>9}'
    )
    for r in results:
        minutes, seconds = divmod(round(r.train_seconds), 60)
        print(
            f'{r.task:16}{r.model:42}{r.metric:10}{r.value:7.2f}'
            f'{minutes:5d}:{seconds:02d} {r.parameters / 1e6:7.2f}M'
        )
    print()


if __name__ == '__main__':
    main()
