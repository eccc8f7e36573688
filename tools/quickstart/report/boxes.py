"""Compare boxes, and choose readable colors for their names."""

from collections.abc import Sequence

Box = Sequence[float]  # x1, y1, x2, y2, class
ENOUGH = 0.5  # intersection over union of a box that is found


def match(truth: Sequence[Box], guess: Sequence[Box]) -> tuple[set[int], set[int]]:
    """Return the indices of wrong predictions and of boxes that are not found.

    Each box of the ground truth matches the first prediction, which has the best
    score, of its class that overlaps it enough.
    """
    wrong, missed = set(), set(range(len(truth)))
    for i, box in enumerate(guess):
        found = [j for j in missed if box[4] == truth[j][4]]
        best = max(found, key=lambda j: overlap(truth[j], box), default=None)
        if best is None or overlap(truth[best], box) < ENOUGH:
            wrong.add(i)
        else:
            missed.discard(best)
    return wrong, missed


def overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(a) + _area(b) - shared) if shared else 0.0


def ink(color: Sequence[int]) -> str:
    """Return black or white, whichever is readable on a color."""
    red, green, blue = color
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else 'white'


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
