"""Predictions for a few validation images, as plain data for the report."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image

SCORE_THRESHOLD = 0.3  # boxes with lower scores are left out, as by tools/infer.py
IMAGES = dict(mmpretrain=30, mmdet=4, mmseg=4)
MISTAKES = 12


def predict(runner: Runner, mistakes: Sequence[int] = ()) -> dict[str, Any]:
    """Predict a few validation images; the model is in training mode afterward.

    Args:
        runner: Runner of a training.
        mistakes: Indices of all images with wrong predictions.

    Returns:
        Class names, colors, samples and mistakes. Those have an image, ground truth and
        prediction: a class, boxes (x1, y1, x2, y2, class), or a label map.
    """
    dataset, model = runner.val_dataloader.dataset, runner.model
    model.eval()
    samples, wrong = (
        [describe(model, dataset, i) for i in spread(indices, number)]
        for indices, number in (
            (range(len(dataset)), IMAGES[runner.cfg.default_scope]),
            (mistakes, MISTAKES),
        )
    )
    model.train()
    meta = dataset.metainfo
    return dict(
        classes=list(meta['classes']),
        palette=[list(color) for color in meta.get('palette', ())],
        samples=samples,
        mistakes=wrong,
        count_mistakes=len(mistakes),
    )


def spread(indices: Sequence[int], number: int) -> list[int]:
    """Choose some of the indices in equal steps, so that all classes appear."""
    number = min(number, len(indices))
    return [indices[(2 * i + 1) * len(indices) // (2 * number)] for i in range(number)]


@torch.no_grad()
def describe(model: torch.nn.Module, dataset: Any, index: int) -> dict[str, Any]:
    """Predict an image of a data set."""
    batch = {key: [value] for key, value in dataset[index].items()}
    sample = model.test_step(batch)[0]
    path = Path(sample.img_path)
    with Image.open(path) as image:
        size = image.size
    return dict(
        path=path.as_posix(),
        size=size,
        image=base64.b64encode(path.read_bytes()).decode(),
        **compare(sample),
    )


def compare(sample: BaseDataElement) -> dict[str, Any]:
    """Return ground truth and prediction as plain data."""
    if 'pred_label' in sample:
        return dict(
            truth=int(sample.gt_label),
            guess=int(sample.pred_label),
            score=float(sample.pred_score.max()),
        )
    if 'pred_sem_seg' in sample:
        return dict(
            truth=as_png(sample.gt_sem_seg.data[0]),
            guess=as_png(sample.pred_sem_seg.data[0]),
        )
    found = sample.pred_instances
    found = found[found.scores > SCORE_THRESHOLD]
    return dict(
        truth=as_boxes(sample.gt_instances),
        guess=as_boxes(found),
        scores=[float(score) for score in found.scores],
    )


def as_boxes(instances: BaseDataElement) -> list[list[float]]:
    """Return boxes as (x1, y1, x2, y2, class)."""
    boxes, labels = instances.bboxes, instances.labels
    corners = getattr(boxes, 'tensor', boxes).tolist()
    return [[*map(float, box), int(i)] for box, i in zip(corners, labels, strict=True)]


def as_png(labels: torch.Tensor) -> str:
    """Encode a label map as a grayscale image."""
    file = BytesIO()
    Image.fromarray(labels.cpu().numpy().astype(np.uint8)).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()
