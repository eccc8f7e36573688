"""Draw predictions on images by the visualizer of mmdet, mmseg or mmpretrain."""

import colorsys
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from _fonts import use_fonts_for
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer

from mmsparse.checks.keywords import type_name
from mmsparse.errors import config_errors
from mmsparse.visualization.image_transform import Pixels

LONGER_SIDE = 640  # of the smallest drawing, so that its text can be read
SMALLEST_LABEL = 200  # times its half width, in drawings: the longer side
CUBIC = cv2.INTER_CUBIC
VISUALIZERS_OF_HOSTS = {
    'mmdet': 'DetLocalVisualizer',
    'mmpretrain': 'UniversalVisualizer',
    'mmseg': 'SegLocalVisualizer',
}


class Drawing:
    """Draws the predictions of a model.

    Args:
        cfg: Config of the model, with the settings of its visualizer.
        classes: Names of the classes; empty if they are not known.
        palette: Color of every class; empty to choose them.
        score_thr: Minimum score of a drawn object.
    """

    def __init__(
        self,
        cfg: Config,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        score_thr: float,
    ) -> None:
        self.classes = classes
        self.palette = [tuple(color) for color in palette]
        self.score_thr = score_thr
        self.families = use_fonts_for(classes)
        self.visualizer = _build_visualizer(cfg)

    def __call__(self, image: Pixels, result: BaseDataElement) -> Pixels:
        """Draw a prediction on its image, RGB, (H, W, 3); a small image is enlarged."""
        factor = max(1.0, LONGER_SIDE / max(image.shape[:2]))
        if factor > 1:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=CUBIC)
        if 'pred_instances' in result:
            self._draw_instances(image, result, factor)
        elif 'pred_sem_seg' in result:
            self._draw_label_map(image, result)
        else:
            text = dict(family=['monospace', *self.families])
            names = self._names(len(result.pred_score))
            self.visualizer.visualize_cls(
                image, result, names, draw_gt=False, text_cfg=text
            )
        return self.visualizer.get_image()

    def _draw_instances(
        self, image: Pixels, result: BaseDataElement, factor: float
    ) -> None:
        found = result.pred_instances
        if 'scores' in found:
            found = found[found.scores >= self.score_thr]
        if not len(found):
            self.visualizer.set_image(image)
            return
        drawn = InstanceData(labels=found.labels)
        if 'scores' in found:
            drawn.scores = found.scores
        if 'bboxes' in found:
            drawn.bboxes = found.bboxes * factor
        if 'masks' in found:
            drawn.masks = _resize(found.masks, image.shape[:2]).bool()
        self._set_classes(max(found.labels.tolist()) + 1)
        # mmdet names no fonts, and makes the text of small objects too small.
        self.visualizer.draw_texts = partial(self._draw_text, max(image.shape))
        # It draws ground truth without scores and threshold.
        sample = type(result)(gt_instances=drawn)
        self.visualizer.add_datasample('', image, sample, draw_pred=False)

    def _draw_label_map(self, image: Pixels, result: BaseDataElement) -> None:
        """Draw a label map, and the name of every class where it is widest."""
        labels = _resize(result.pred_sem_seg.data, image.shape[:2])
        found = labels.unique().tolist()
        self._set_classes(found[-1] + 1)
        sample = type(result)(pred_sem_seg=PixelData(data=labels))
        # mmseg draws names by OpenCV, which has ASCII only.
        self.visualizer.add_datasample(
            '', image, sample, draw_gt=False, with_labels=False
        )
        for label in found:
            mask = np.pad(labels[0] == label, 1).astype(np.uint8)
            depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
            if depth.max() * SMALLEST_LABEL < max(image.shape):
                continue
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            color = self.visualizer.dataset_meta['palette'][label]
            self._draw_text(
                max(image.shape),
                self.visualizer.dataset_meta['classes'][label],
                np.array([x - 1, y - 1]),
                font_sizes=max(image.shape) // 50,
                colors='black' if sum(color) > 380 else 'white',
                vertical_alignments='center',
                horizontal_alignments='center',
                bboxes=dict(facecolor=[x / 255 for x in color], pad=2),
            )

    def _draw_text(
        self,
        longer_side: int,
        text: str,
        position: np.ndarray,
        font_sizes: int = 0,
        **style: Any,
    ) -> None:
        """Draw a text of the visualizer that can be read."""
        size = max(font_sizes, longer_side // 70)
        fonts = dict(font_sizes=size, font_families=[self.families])
        type(self.visualizer).draw_texts(
            self.visualizer, text, position, **fonts, **style
        )

    def _set_classes(self, count: int) -> None:
        """Set names and colors of at least ``count`` classes."""
        names = self._names(count)
        self.visualizer.dataset_meta = dict(
            classes=names, palette=self.palette or _colors(len(names))
        )

    def _names(self, count: int) -> list[str]:
        unknown = range(len(self.classes), count)
        return [*self.classes, *(f'class {i}' for i in unknown)]


def _build_visualizer(cfg: Config) -> Visualizer:
    """Build the visualizer of a library, with the settings of a config for it."""
    name = VISUALIZERS_OF_HOSTS[cfg.default_scope]
    given = dict(cfg.get('visualizer') or {})
    settings: dict[str, Any] = {}
    if type_name(given) == name:
        settings = {k: v for k, v in given.items() if k not in ('type', '_scope_')}
    settings.update(name='infer', vis_backends=None, save_dir=None)
    with config_errors():
        return VISUALIZERS.get(f'{cfg.default_scope}.{name}')(**settings)


def _resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize label maps or masks, (N, H, W), by nearest neighbors."""
    resized = torch.nn.functional.interpolate(maps[None].float(), size)
    return resized[0].to(maps.dtype)


def _colors(count: int) -> list[tuple[int, ...]]:
    """Return colors that differ in hue."""
    hues = (colorsys.hsv_to_rgb(i / count, 0.85, 0.95) for i in range(count))
    return [tuple(round(255 * x) for x in hue) for hue in hues]
