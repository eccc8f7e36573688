"""The tables of the report, as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

Tables = Mapping[str, Any]
AVERAGES = {  # of mmdet
    'AP': 'coco/bbox_mAP',
    'AP50': 'coco/bbox_mAP_50',
    'AP75': 'coco/bbox_mAP_75',
    'AP of small boxes': 'coco/bbox_mAP_s',
    'AP of medium boxes': 'coco/bbox_mAP_m',
}


def show_tables(task: str, tables: Tables) -> str:
    """Show what a validation has found for each class."""
    return SHOW[task](tables)


def _classification(tables: Tables) -> str:
    names, counts = tables['classes'], np.array(tables['confusion'])
    share = counts / counts.sum(1, keepdims=True).clip(1)
    head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = ''.join(
            f'<td style="--share:{share[i, j]:.2f}"'
            f'{_wrong(i != j and counts[i, j])}>{counts[i, j] or ""}</td>'
            for j in range(len(names))
        )
        right = f'<td class="sum">{share[i, i]:.1%}</td>'.replace('%', ' %')
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}{right}</tr>')
    return (
        '<table class="confusion"><caption>Rows: digits of the validation images; '
        'columns: predictions; last column: accuracy</caption>'
        f'<thead><tr><td></td>{head}<td></td></tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table>'
    )


def _segmentation(tables: Tables) -> str:
    counts = np.array(tables['confusion'], dtype=float)
    both = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - both
    overlaps = 100 * both / union.clip(1)
    averages = {
        'mIoU': overlaps.mean(),
        'pixel accuracy': 100 * both.sum() / counts.sum(),
    }
    return _bars('IoU of each class', tables['classes'], overlaps) + _averages(averages)


def _detection(tables: Tables) -> str:
    metrics = tables['metrics']
    names = tables['classes']
    values = [100 * metrics.get(f'coco/{name}_precision', np.nan) for name in names]
    averages = {
        title: 100 * metrics[key] for title, key in AVERAGES.items() if key in metrics
    }
    return _bars('Box AP of each class', names, values) + _averages(averages)


SHOW = {
    'classification': _classification,
    'segmentation': _segmentation,
    'detection': _detection,
}


def _bars(caption: str, names: Sequence[str], values: Sequence[float]) -> str:
    """Show values in percent as a table with bars."""
    rows = ''.join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="bar"><i style="width:{max(value, 0):.1f}%"></i></td>'
        f'<td>{value:.1f}</td></tr>'
        for name, value in zip(names, values, strict=True)
    )
    return f'<table class="bars"><caption>{caption}</caption>{rows}</table>'


def _averages(values: Mapping[str, float]) -> str:
    items = ''.join(
        f'<div><dt>{title}</dt><dd>{value:.1f}</dd></div>'
        for title, value in values.items()
    )
    return f'<dl class="averages">{items}</dl>'


def _wrong(count: int) -> str:
    return ' class="wrong"' if count else ''
