"""Draw curves as SVG."""

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 640, 330
LEFT, RIGHT, TOP, BOTTOM = 44, 44, 14, 48  # margins


def draw_curve(points: Sequence[dict[str, Any]], iterations: int, metric: str) -> str:
    """Draw the loss (left axis) and the metric (right axis) over the iterations.

    Args:
        points: Points with iteration, and loss or value.
        iterations: Number of iterations of the whole training.
        metric: Name of the metric, in percent.

    Returns:
        An SVG element, with classes for its colors.
    """
    losses = [(x['iteration'], x['loss']) for x in points if 'loss' in x]
    values = [(x['iteration'], x['value']) for x in points if 'value' in x]
    # The first losses may be much higher than all others.
    ordered = sorted(loss for _, loss in losses[len(losses) // 20 :])
    top = nice(1.1 * ordered[-1]) if ordered else 1.0

    def place(iteration: float, share: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * iteration / iterations
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(share, 1))
        return f'{x:.1f},{y:.1f}'

    parts = [_grid(iterations, top)]
    if losses:
        line = ' '.join(place(i, loss / top) for i, loss in losses)
        parts.append(f'<polyline class="loss" points="{line}"/>')
    if values:
        line = ' '.join(place(i, value / 100) for i, value in values)
        parts.append(f'<polyline class="metric" points="{line}"/>')
        for i, value in values:
            x, y = place(i, value / 100).split(',')
            at = f'x="{x}" y="{float(y) + (18 if value > 90 else -9):.1f}"'
            anchor = 'end' if i > 0.9 * iterations else 'middle'
            parts.append(f'<circle class="metric" cx="{x}" cy="{y}" r="4"/>')
            text = f'<text class="metric" text-anchor="{anchor}" {at}>'
            parts.append(f'{text}{value:.1f}</text>')
    title = f'Loss and {escape(metric)} over {iterations:,} iterations'
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<title>{title}</title>{"".join(parts)}</svg>'
    )


def nice(value: float) -> float:
    """Return the next of 1, 2, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    power = 10.0
    while power > value:
        power /= 10
    while power * 10 < value:
        power *= 10
    return next(x * power for x in (1, 2, 3, 4, 5, 6, 8, 10) if x * power >= value)


def _grid(iterations: int, top: float) -> str:
    """Draw lines and numbers of the axes."""
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text class="loss" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">'
            f'{top * share:.3g}</text>'
            f'<text class="metric" x="{WIDTH - RIGHT + 8}" y="{y + 4}">'
            f'{100 * share:.0f}</text>'
        )
    step = nice(max(iterations / 5, 1))
    for count in range(int(iterations / step) + 1):
        x = LEFT + (WIDTH - LEFT - RIGHT) * count * step / iterations
        text = f'{count * step:,.0f}'
        parts.append(_text(x, HEIGHT - BOTTOM + 20, text))
    parts.append(_text(WIDTH / 2, HEIGHT - 6, 'iterations'))
    return ''.join(parts)


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>'
