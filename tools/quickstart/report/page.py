"""Build the page: one file, with all images in it."""

import base64
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from PIL import Image

from quickstart.report.charts import draw_curve
from quickstart.report.panels import show_samples
from quickstart.report.section import Section
from quickstart.report.tables import show_tables

HEIGHT = 230  # of a drawing, at least, in pixels
TEMPLATE = Path(__file__).with_name('page.html')
METRICS = dict(
    classification=('accuracy', '%'),
    segmentation=('mIoU', ''),
    detection=('box AP', ''),
)
# Titles and captions of the drawings of `mmsparse.visualization`.
DRAWINGS = {
    'routed_regions': (
        'Routed regions',
        'The region with the blue outline is routed to those with white outlines (top) '
        'and attends to their tokens only (bottom).',
    ),
    'sampled_keys': (
        'Sampled keys',
        'Dots are the keys that the attention samples, lines their offsets; large dots '
        'receive much attention.',
    ),
    'receptive_field': (
        'Receptive field',
        'The pixels that influence the features at the mark.',
    ),
    'attention': (
        'Attention',
        'What the query at the mark attends to, in the last layer of each stage.',
    ),
}


def build_page(
    title: str, sections: Mapping[str, Section], facts: Mapping[str, str]
) -> str:
    """Build the page.

    Args:
        title: Name of the models.
        sections: What the folders of the tasks have.
        facts: Machine, versions, command, commit and date.

    Returns:
        HTML.
    """
    parts = dict(
        title=escape(title),
        lead=_lead(sections, facts),
        cards=''.join(map(_card, sections.values())),
        sections=''.join(map(_show, sections.values())),
        commands=''.join(_commands(sections)),
        facts=''.join(
            f'<dt>{name}</dt><dd>{escape(value)}</dd>' for name, value in facts.items()
        ),
    )
    return re.sub(r'<!-- (\w+) -->', lambda mark: parts[mark[1]], TEMPLATE.read_text())


def _lead(sections: Mapping[str, Section], facts: Mapping[str, str]) -> str:
    machine = escape(facts['machine'])
    finished = [x for x in sections.values() if x.result]
    if len(finished) < len(sections):
        return (
            f'Training on {machine}: {len(finished)} of {len(sections)} models are '
            'finished. Reload the page for more.'
        )
    return f'Three models, trained in {_minutes(_total(sections))} on {machine}.'


def _total(sections: Mapping[str, Section]) -> float:
    """Return the seconds of training; tasks with the same parent run side by side."""
    ends: dict[str, float] = {'': 0.0}
    for task, section in sections.items():
        ends[task] = ends[section.job.parent] + section.result.train_seconds
    return max(ends.values())


def _card(section: Section) -> str:
    task, result = section.job.task, section.result
    metric, unit = METRICS[task]
    if result:
        value = f'{result.value:.1f}<small>{unit}</small>'
        note = (
            f'{result.parameters / 1e6:.1f} M parameters, '
            f'{_minutes(result.train_seconds)} of training'
        )
    else:
        values = [x['value'] for x in section.curve if 'value' in x]
        value = f'{values[-1]:.1f}<small>{unit}</small>' if values else '…'
        iteration = section.curve[-1]['iteration'] if section.curve else 0
        note = f'iteration {iteration:,} of {section.job.iterations:,}'
    return (
        f'<a class="card" href="#{task}"><h2>{task}</h2><p class="value">{value}</p>'
        f'<p>{metric}</p><p class="note">{note}</p></a>'
    )


def _show(section: Section) -> str:
    """Show all that is known of a task."""
    task, result, curve = section.job.task, section.result, section.curve
    metric, _ = METRICS[task]
    parts = [f'<section id="{task}"><h2>{task.capitalize()}</h2>']
    if result:
        config = escape(result.config)
        parts.append(f'<p class="note"><code>{config}</code></p>')
    if not curve:
        return ''.join(
            [*parts, '<p class="note">Training has not begun.</p></section>']
        )
    parts.append('<div class="columns"><div><h3>Training</h3>')
    parts.append(
        f'<p class="legend"><i class="loss"></i>loss <i class="metric"></i>{metric} on '
        'validation images</p>'
    )
    parts.append(draw_curve(curve, section.job.iterations, metric))
    time = f'{curve[-1]["iteration"]:,} iterations in {_minutes(curve[-1]["seconds"])}'
    parts.append(f'<p class="note">{time}, with validation.</p></div>')
    if result:
        parts.append(f'<div><h3>By class</h3>{show_tables(task, section.tables)}</div>')
    parts.append('</div>')
    if section.predictions:
        iteration = section.predictions['iteration']
        after = '' if result else f' after {iteration:,} iterations'
        parts.append(f'<h3>Predictions{after}</h3>{show_samples(section.predictions)}')
    if section.attention:
        parts.append('<h3>Attention</h3><div class="drawings">')
        parts += _drawings(section)
        parts.append('</div>')
    return ''.join([*parts, '</section>'])


def _drawings(section: Section) -> Iterator[str]:
    for name, (title, caption) in DRAWINGS.items():
        if path := section.attention.get(name):
            data = base64.b64encode(path.read_bytes()).decode()
            with Image.open(path) as image:
                ratio = image.width / image.height  # equal heights fill a row
            yield (
                f'<figure style="flex: {ratio:.3f} 1 {HEIGHT * ratio:.0f}px; '
                f'max-width: {2 * HEIGHT * ratio:.0f}px">'
                f'<img src="data:image/webp;base64,{data}" '
                f'alt="{title}: {caption}"><figcaption><b>{title}.</b> {caption}'
                '</figcaption></figure>'
            )


def _commands(sections: Mapping[str, Section]) -> Iterator[str]:
    """Yield commands for the trained models, which run in the repository's root."""
    for task, section in sections.items():
        if result := section.result:
            model = f'{result.config} {result.checkpoint}'
            lines = {
                'This image, or your own': f'infer.py {section.example} {model}',
                'What the model attends to, as a page with a slider over all layers': (
                    f'visualize.py {model} {section.example} --html'
                ),
                'The metric': f'test.py {model}',
            }
            yield f'<h3>{task.capitalize()}</h3>'
            for what, line in lines.items():
                yield f'<p>{what}:</p><pre>python tools/{escape(line)}</pre>'
    yield (
        '<h3>Your own data</h3><p>Copy a config, name your folders in it, and train: '
        '<code>docs/own_data.md</code> goes through it.</p>'
    )
    for section in sections.values():
        if section.result:
            yield f'<pre>python tools/train.py {escape(section.result.config)}</pre>'
            return


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'
