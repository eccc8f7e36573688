"""Write the files of the report."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from benchmark.report import environment, record

from quickstart.report.page import build_page
from quickstart.report.section import read_section
from quickstart.report.sheet import draw_sheet
from quickstart.tasks import Job, Result

PAGE, SHEET, SUMMARY = 'report.html', 'report.png', 'summary.json'


def write(out: Path, title: str, jobs: Mapping[str, Job]) -> list[Path]:
    """Write all files from what the training runs have written so far.

    Args:
        out: Folder of the files.
        title: Title of the report.
        jobs: The training runs by their tasks.

    Returns:
        The page, the image, and the record if all training runs are finished.
    """
    sections = {task: read_section(job) for task, job in jobs.items()}
    facts = record(torch.device('cpu'))
    page, sheet, summary = out / PAGE, out / SHEET, out / SUMMARY
    page.write_text(build_page(title, sections, facts))
    draw_sheet(sections).save(sheet)
    results = [section.result for section in sections.values()]
    if not all(results):
        return [page, sheet]
    content = dict(
        title=f'Quickstart with {title}',
        what='Three small models on the digits; the backbone of the classifier '
        'initializes the others.',
        **facts,
        figures={result.task: columns(result) for result in results},
        configs={result.task: result.config for result in results},
        seed=next(iter(jobs.values())).seed,
        environment=environment(torch.device('cpu')),
        results=[asdict(result) for result in results],
    )
    summary.write_text(json.dumps(content, indent=2) + '\n')
    return [page, sheet, summary]


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
