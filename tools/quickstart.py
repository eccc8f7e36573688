"""Train and evaluate three nano models on the digits scenes, and report.

Classification first; its backbone then starts segmentation, as ImageNet's does for
larger ones, and that of segmentation starts detection. Writes summary.json and
report.png into the output folder.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import quickstart_report
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
# glibc's malloc gives large blocks back to the system and asks for them again in every
# iteration; keeping them makes these trainings a tenth faster.
KEEP_MEMORY = dict(MALLOC_MMAP_THRESHOLD_=str(2**32), MALLOC_TRIM_THRESHOLD_=str(2**33))


@dataclass(frozen=True)
class Task:
    """One training of the quickstart.

    Args:
        name: Name of the task.
        config: Its configuration, below ``configs``.
        metric: What the host calls the metric.
        metric_name: What people call it.
        scale: What turns the host's value into percent.
    """

    name: str
    config: str
    metric: str
    metric_name: str
    scale: float = 1.0


@dataclass(frozen=True)
class Result:
    """What came of a task.

    Args:
        task: Name of the task.
        model: Name of the configuration.
        metric: Name of the metric, in percent, on the validation digits.
        value: Its value after the last epoch.
        train_seconds: Wall time of the training with its evaluations.
        parameters: Number of parameters of the model.
        checkpoint: The last checkpoint.
    """

    task: str
    model: str
    metric: str
    value: float
    train_seconds: float
    parameters: int
    checkpoint: str


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
        Task(
            'classification',
            f'{backbone}/{classifier}.py',
            'accuracy/top1',
            'accuracy',
        ),
        Task(
            'segmentation',
            f'{backbone}/fpn_{name}_1xb8-1600i_digits.py',
            'mIoU',
            'mIoU',
        ),
        Task(
            'detection',
            f'focus_detr/focus-detr_{name}_1xb4-4e_digits.py',
            'coco/bbox_mAP',
            'box AP',
            scale=100.0,
        ),
    )


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    data = [sys.executable, ROOT / 'tools' / 'prepare_digits.py']
    if subprocess.run(data, cwd=ROOT).returncode:
        sys.exit('error: the digits scenes could not be built')

    os.environ.update(KEEP_MEMORY)  # read by the processes of the trainings
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


def in_new_process(function: Callable, *args: Any) -> Any:
    """Call a function in a fresh process: every host wants the scope for itself."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def run_task(
    task: Task, work_dir: Path, pretrained: str | None, label: str
) -> tuple[Result, quickstart_report.Row]:
    """Train and evaluate one model, with its log in the work directory."""
    warnings.simplefilter('ignore')
    work_dir.mkdir(parents=True, exist_ok=True)
    with (
        (work_dir / 'train.log').open('w') as log,
        contextlib.redirect_stdout(log),
    ):
        from mmengine.runner import Runner

        from mmsparse.hosts import read_config

        cfg = read_config(str(ROOT / 'configs' / task.config))
        cfg.work_dir = str(work_dir)
        cfg.optim_wrapper.optimizer.fused = True  # for CPUs, too, with recent torch
        if pretrained:
            cfg.model.backbone.init_cfg = dict(
                type='Pretrained', checkpoint=pretrained, prefix='backbone.'
            )
        runner = Runner.from_cfg(cfg)
        runner.register_hook(progress_hook(label), priority='LOWEST')
        start = time.perf_counter()
        runner.train()
        seconds = time.perf_counter() - start
        value = runner.test()[task.metric] * task.scale
        row = quickstart_report.predict(runner, task.name)
    parameters = sum(parameter.numel() for parameter in runner.model.parameters())
    result = Result(
        task=task.name,
        model=Path(task.config).stem,
        metric=task.metric_name,
        value=round(float(value), 2),
        train_seconds=round(seconds, 1),
        parameters=parameters,
        checkpoint=(work_dir / 'last_checkpoint').read_text().strip(),
    )
    return result, row


def progress_hook(label: str) -> Any:
    """A bar on the screen in place of the log, which goes to a file."""
    from mmengine.hooks import Hook

    class ProgressHook(Hook):
        def before_train(self, runner) -> None:
            self.bar = tqdm(total=runner.max_iters, desc=f'{label:20}', unit='it')

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.bar.update()
            self.bar.set_postfix(loss=f'{float(outputs["loss"]):.2f}', refresh=False)

        def after_train(self, runner) -> None:
            self.bar.close()

    return ProgressHook()


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
