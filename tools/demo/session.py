"""What a visitor of the page has chosen, and the drawing of it; knows no page."""

from collections.abc import Mapping

import numpy as np
from PIL.ImageColor import getrgb

from demo.images import SHORTEST, fit
from demo.models import Choice, load
from mmsparse.visualization import (
    choose_query_point,
    list_drawings,
    panels,
    rasterize,
    record_image,
)
from mmsparse.visualization.image_transform import Pixels, Point

INPUT = 384  # pixels of the longer side of the model's input
CLICKED = 512  # of the longer side of the image to click, at least about this
CROSS = (1, 9)  # half of the width and of the length of its lines, in pixels
DPI = 150
DRAWINGS = {  # name: title, and legend
    'attention': (
        'Attention',
        'What the query (star) attends to in the last layer of each stage, a row per '
        'group of heads. Lighter is more, relative to the largest weight of a panel.',
    ),
    'routed_regions': (
        'Routed regions',
        'Top: the regions to which the region of the query (blue) is routed, lighter '
        'for a higher affinity. Bottom: attention to their tokens.',
    ),
    'sampled_keys': (
        'Sampled keys',
        'Where deformable attention samples its keys. Larger, lighter dots receive '
        'more attention from all queries, so this drawing does not depend on the '
        'click; arrows show how far keys are from the regular grid.',
    ),
    'receptive_field': (
        'Receptive field',
        'Pixels that influence the last feature map at the query: the square root of '
        'the gradient.',
    ),
}
NAMES = {title: name for name, (title, _) in DRAWINGS.items()}
RANDOM = (
    '**{name} has random weights**: this is what an untrained model attends to. For '
    'trained weights, start the demo with `--model {name} --checkpoint FILE`.'
)


class Session:
    """Image, model, query and drawing of one visitor.

    Args:
        choices: Models by title; the first is chosen.
        image: RGB, (H, W, 3).
    """

    def __init__(self, choices: Mapping[str, Choice], image: Pixels) -> None:
        self._choices = choices
        self.title = next(iter(choices))
        self.drawing = 'Attention'
        self.open(image)

    def open(self, image: Pixels) -> None:
        """Change the image; the query is the point most salient to the model."""
        self.image = image
        self._record()
        self.point: Point = choose_query_point(self._sample, self._model.backbone)

    def choose(self, title: str) -> None:
        """Change the model; the query stays."""
        self.title = title
        self._record()
        if self.drawing not in self.drawings:
            self.drawing = 'Attention'

    def click(self, x: float, y: float) -> None:
        """Move the query to a point in pixels of the marked image."""
        height, width = self.image.shape[:2]
        limits = ((x, width), (y, height))
        self.point = tuple(
            min(max((place + 0.5) / self._zoom, 0), end - 0.5) for place, end in limits
        )

    @property
    def drawings(self) -> list[str]:
        """Titles of the drawings that the model has data for."""
        names = list_drawings(self._sample, self._model.backbone)
        return [title for title, name in NAMES.items() if name in names]

    def draw(self) -> Pixels:
        """Return the chosen drawing, (H, W, 3)."""
        found = list_drawings(self._sample, self._model.backbone)
        return rasterize(found[NAMES[self.drawing]](self.point), DPI)

    def marked_image(self) -> Pixels:
        """Return the image with a cross at the query, (H, W, 3), a small one larger."""
        marked = self.image.repeat(self._zoom, axis=0).repeat(self._zoom, axis=1)
        x, y = (int(place * self._zoom) for place in self.point)
        for color, border in (('black', 1), (panels.QUERY_COLOR, 0)):
            near, far = CROSS[0] + border, CROSS[1] + border
            for width, height in ((near, far), (far, near)):
                rows = slice(max(y - height, 0), y + height + 1)
                marked[rows, max(x - width, 0) : x + width + 1] = getrgb(color)
        return marked

    @property
    def _zoom(self) -> int:
        """Screen pixels per pixel of the image."""
        return max(CLICKED // max(self.image.shape), 1)

    @property
    def legend(self) -> str:
        """What the drawing shows, and of which query."""
        x, y = map(int, self.point)
        height, width = self.image.shape[:2]
        return (
            f'Query at x {x}, y {y} of {width} x {height} pixels. '
            f'{DRAWINGS[NAMES[self.drawing]][1]}'
        )

    @property
    def notice(self) -> str:
        """A warning if the weights are random, else ''."""
        choice = self._choices[self.title]
        return '' if choice.weights else RANDOM.format(name=choice.name)

    def _record(self) -> None:
        self._model = load(self._choices[self.title])
        size = fit(self.image.shape[:2], INPUT, SHORTEST)
        self._sample = record_image(self._model, np.array(self.image), size)
