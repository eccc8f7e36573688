"""A picture, what a model saw of it, and what the model says it shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, DefaultScope
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsparse.visualization.image_transform import ImageTransform, Pixels, run_pipeline
from mmsparse.visualization.recorder import Recording, record

BLUR = 16  # a salient spot is this part of the picture


@dataclass
class Sample:
    """A picture, what a model saw of it, and what the model says it shows.

    Args:
        picture: RGB, (H, W, 3).
        frame: Where its pixels lie in what the model was given.
        seen: What was seen of this one picture.
        boxes: Detections (x1, y1, x2, y2) in pixels of the picture, best first, (M, 4).
        labels: A few letters for each.
        classes: Predicted class of every pixel, (H, W), of a segmentor.
        caption: Predicted class of the picture, of a classifier.
    """

    picture: Pixels
    frame: ImageTransform
    seen: Recording
    boxes: Tensor = field(default_factory=lambda: torch.empty(0, 4))
    labels: Sequence[str] = ()
    classes: NDArray[np.integer] | None = None
    caption: str = ''

    def to_pixels(self, normalized: Tensor) -> Tensor:
        """Points from 0 to 1 over the input, to pixels of the picture, (..., 2)."""
        ends = normalized.new_tensor(self.frame.size[::-1])
        return self.frame.to_picture(normalized * ends)

    def detections(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and boxes in pixels of the picture, of all queries."""
        scores, labels, boxes = (x[0] for x in self.seen.detections)
        ends = boxes.new_tensor(self.frame.size[::-1]).repeat(2)
        return scores, labels, self.frame.boxes_to_picture(boxes * ends)


def read_pipeline(cfg: Config) -> tuple[Sequence[Any], Sequence[str]]:
    """Build the transforms for tests, and tell the names of the classes.

    Args:
        cfg: The configuration, of a host that is registered.

    Returns:
        The transforms; and the names, none where only building the data would tell.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        transforms = Compose(dataset.pipeline).transforms
        kind = DATASETS.get(dataset.type)
    named = dataset.get('metainfo') or getattr(kind, 'METAINFO', {})
    names = named.get('classes') if isinstance(named, dict) else None
    return transforms, names if isinstance(names, (tuple, list)) else ()


def view(
    model: BaseModel,
    transforms: Sequence[Any],
    path: str,
    names: Sequence[str] = (),
    score_thr: float = 0.3,
) -> Sample:
    """Run a model on a picture and watch it.

    Args:
        model: In eval mode.
        transforms: The host's pipeline for tests.
        path: The file of the picture.
        names: Those of the classes.
        score_thr: Least score of a detection.

    Returns:
        The scene.

    Raises:
        ValueError: The model has no part to look at, or the pipeline moves pixels in a
            way that cannot be followed.
    """
    with record(model) as seen, torch.no_grad():
        data, picture, frame = run_pipeline(transforms, path)
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        (sample,) = model.test_step(batch)
    scene = Sample(picture, frame, seen)
    return replace(scene, **_predictions(sample, scene, names, score_thr))


def _predictions(
    sample: Any, scene: Sample, names: Sequence[str], score_thr: float
) -> dict[str, Any]:
    def name(label: int) -> str:
        return str(names[label]) if label < len(names) else str(label)

    if 'pred_sem_seg' in sample:
        return dict(classes=sample.pred_sem_seg.data[0].cpu().numpy())
    if 'pred_score' in sample:
        score, label = sample.pred_score.max(-1)
        return dict(caption=f'{name(int(label))} ({float(score):.2f})')
    found = sample.pred_instances.cpu()
    found = found[found.scores >= score_thr]
    # The host undoes what it resized, and nothing else.
    factor = found.bboxes.new_tensor(sample.get('scale_factor', (1, 1))).repeat(2)
    return dict(
        boxes=scene.frame.boxes_to_picture(found.bboxes * factor),
        labels=[
            f'{name(int(label))} {float(score):.2f}'
            for label, score in zip(found.labels, found.scores, strict=True)
        ],
    )


def choose_point(scene: Sample, backbone: nn.Module) -> tuple[float, float]:
    """Choose where to look at: the best detection's middle, or what is most salient.

    Args:
        scene: The picture and what was seen of it.
        backbone: That of the model.

    Returns:
        (x, y) in pixels of the picture.
    """
    if len(scene.boxes):
        x1, y1, x2, y2 = scene.boxes[0].tolist()
        return (x1 + x2) / 2, (y1 + y2) / 2
    spot = salient_spot(backbone, scene.seen.inputs, scene.frame.size)
    x, y = scene.frame.to_picture(torch.tensor(spot)).tolist()
    return x, y


def salient_spot(
    backbone: nn.Module, inputs: Tensor, size: tuple[int, int]
) -> tuple[float, float]:
    """Find where a change would change the last map of a backbone most.

    Args:
        backbone: Returns maps.
        inputs: One picture, (1, 3, H, W).
        size: Height and width of its part that is not padding.

    Returns:
        (x, y) in pixels of the input. What counts is how much the cells of the map
        differ from their mean.
    """
    inputs = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        features = backbone(inputs)[-1]
        contrast = (features - features.mean((2, 3), keepdim=True)).square().sum()
        (gradient,) = torch.autograd.grad(contrast, inputs)
    height, width = size
    strength = gradient.abs().sum(1, keepdim=True)[..., :height, :width]
    window = min(size) // BLUR * 2 + 1
    for _ in range(2):  # a box twice is almost a bell
        strength = F.avg_pool2d(strength, window, 1, window // 2)
    row, column = divmod(int(strength.argmax()), width)
    return column + 0.5, row + 0.5
