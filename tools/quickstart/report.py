"""Draw input, ground truth and prediction of each task into one figure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image, ImageDraw, ImageFont

SCORE_THRESHOLD = 0.4  # boxes with lower scores are not drawn
COLUMNS = ('input', 'ground truth', 'prediction')


@dataclass(frozen=True)
class Row:
    """A row of the figure: input, ground truth and prediction of a task.

    Args:
        task: Name of the task.
        panels: Images, each (H, W, 3), 0 to 255.
    """

    task: str
    panels: tuple[np.ndarray, np.ndarray, np.ndarray]


def predict(runner: Runner, task: str) -> Row:
    """Run a trained model on a few validation images and draw the results.

    Args:
        runner: Runner after training.
        task: A key of ``DRAW``.

    Returns:
        The row of the figure.
    """
    draw, per_side, zoom = DRAW[task]
    dataset = runner.test_dataloader.dataset
    step = max(len(dataset) // per_side**2, 1)  # so that all classes appear
    runner.model.eval()
    triples = []
    for index in range(step // 2, len(dataset), step)[: per_side**2]:
        item = dataset[index]
        batch = {key: [value] for key, value in item.items()}
        with torch.no_grad():
            sample = runner.model.test_step(batch)[0]
        image = Image.open(sample.img_path).convert('RGB')
        size = (image.width * zoom, image.height * zoom)
        image = image.resize(size, Image.Resampling.BICUBIC)
        triples.append((image, *draw(image, sample, dataset.metainfo, zoom)))
    return Row(
        task, tuple(_mosaic(column, per_side) for column in zip(*triples, strict=True))
    )


def write(path: Path, rows: list[Row]) -> None:
    """Write the figure as a PNG file, with one row per task."""
    mpl.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(rows), 3, figsize=(12, 4.1 * len(rows)), layout='constrained'
    )
    for line, row in zip(np.atleast_2d(axes), rows, strict=True):
        for axis, panel, title in zip(line, row.panels, COLUMNS, strict=True):
            axis.imshow(panel)
            axis.set_title(f'{row.task}: {title}')
            axis.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


Pair = tuple[Image.Image, Image.Image]


def _draw_class(
    image: Image.Image, sample: BaseDataElement, meta: dict, zoom: int
) -> Pair:
    truth, guess = int(sample.gt_label), int(sample.pred_label)
    score = float(sample.pred_score.max())
    right = 'white' if guess == truth else 'orange'
    return (
        _with_text(image, meta['classes'][truth], 'white'),
        _with_text(image, f'{meta["classes"][guess]} ({score:.0%})', right),
    )


def _draw_boxes(
    image: Image.Image, sample: BaseDataElement, meta: dict, zoom: int
) -> Pair:
    kept = sample.pred_instances[sample.pred_instances.scores > SCORE_THRESHOLD]
    pair = []
    for instances in (sample.gt_instances, kept):
        drawn = image.copy()
        pen = ImageDraw.Draw(drawn)
        font = ImageFont.load_default(size=13)
        for box, label in zip(instances.bboxes, instances.labels, strict=True):
            corners = [float(x) * zoom for x in box]
            color = meta['palette'][int(label)]
            pen.rectangle(corners, outline=color, width=3)
            name = meta['classes'][int(label)]
            anchor = corners[0], max(corners[1] - 16, 0)
            pen.rectangle(pen.textbbox(anchor, name, font=font), fill=color)
            pen.text(anchor, name, fill='black', font=font)
        pair.append(drawn)
    return tuple(pair)


def _draw_label_maps(
    image: Image.Image, sample: BaseDataElement, meta: dict, zoom: int
) -> Pair:
    palette = np.array(meta['palette'], dtype=np.uint8)
    pair = []
    for labels in (sample.gt_sem_seg, sample.pred_sem_seg):
        colors = palette[labels.data[0].cpu().numpy()]
        drawn = Image.fromarray(colors).resize(image.size, Image.Resampling.NEAREST)
        pair.append(drawn)
    return tuple(pair)


DRAW: dict[str, tuple[Callable[..., Pair], int, int]] = {
    # Function, images per side of the panel, magnification.
    'classification': (_draw_class, 5, 2),
    'detection': (_draw_boxes, 2, 3),
    'segmentation': (_draw_label_maps, 2, 3),
}


def _with_text(image: Image.Image, text: str, color: str) -> Image.Image:
    drawn = image.copy()
    ImageDraw.Draw(drawn).text(
        (4, 2),
        text,
        fill=color,
        font=ImageFont.load_default(size=24),
        stroke_width=2,
        stroke_fill='black',
    )
    return drawn


def _mosaic(images: tuple[Image.Image, ...], per_side: int) -> np.ndarray:
    margin = 4
    width, height = (length + margin for length in images[0].size)
    page = Image.new('RGB', (per_side * width, per_side * height), 'white')
    for i, image in enumerate(images):
        page.paste(image, (i % per_side * width, i // per_side * height))
    return np.asarray(page)
