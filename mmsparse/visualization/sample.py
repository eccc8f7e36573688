"""Run a model on an image, and keep the image, the recording and the predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import CheckpointLoader
from numpy.typing import NDArray
from torch import Tensor, nn

from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.visualization.image_transform import (
    ImageTransform,
    Pixels,
    Point,
    Size,
    run_pipeline,
)
from mmsparse.visualization.recorder import LayerRecording, Recording, record

BLUR = 16  # the shorter side of the image per window of the saliency's blur
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


@dataclass
class Sample:
    """An image with the recording of a model and the model's predictions.

    Boxes (x1, y1, x2, y2) are in pixels of the image, best first.
    """

    image: Pixels  # RGB, (H, W, 3)
    transform: ImageTransform  # from the image to the model's input
    recording: Recording  # of this image alone
    class_names: Sequence[str] = ()  # as far as they are known
    boxes: Tensor = field(default_factory=lambda: torch.empty(0, 4))  # (M, 4)
    labels: Sequence[str] = ()  # class and score of every box
    masks: Tensor | None = None  # of the boxes, bool, (M, H, W)
    seg_map: NDArray[np.integer] | None = None  # predicted classes, (H, W)
    caption: str = ''  # predicted class of the image, with its score

    def query_at(self, point: Point, layer: LayerRecording) -> int:
        """Return the index of a layer's query at a point of the image.

        Raises ValueError if the point is outside of the image or was cropped.
        """
        self.transform.check_point(point)
        return layer.query_at(self.transform.to_input(torch.tensor(point)))

    def to_pixels(self, normalized: Tensor) -> Tensor:
        """Scale points (x, y) from [0, 1] over the input to pixels of the image."""
        ends = normalized.new_tensor(self.transform.input_size[::-1])
        return self.transform.to_image(normalized * ends)

    def query_detections(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, labels, and boxes in image pixels of all decoder queries."""
        scores, labels, boxes = (x[0] for x in self.recording.detections)
        ends = boxes.new_tensor(self.transform.input_size[::-1]).repeat(2)
        return scores, labels, self.transform.boxes_to_image(boxes * ends)

    def without_predictions(self) -> 'Sample':
        """Return the image and its recording alone."""
        return Sample(self.image, self.transform, self.recording, self.class_names)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number if it is not known."""
        known = label < len(self.class_names)
        return self.class_names[label] if known else f'class {label}'

    def describe(self, label: int, score: float) -> str:
        """Format a class with its score."""
        return f'{self.class_name(label)} ({score:.2f})'


def read_pipeline(cfg: Config) -> Sequence[Any]:
    """Return the transforms of a config's test pipeline.

    The modules of the config's ``default_scope`` must be registered.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return Compose(_test_dataset(cfg).pipeline).transforms


def read_metainfo(cfg: Config) -> dict[str, Any]:
    """Return the metainfo of a config's test data, as far as it is not in files.

    It has class names as ``classes`` and colors as ``palette``, if they are known. The
    modules of the config's ``default_scope`` must be registered.
    """
    dataset = _test_dataset(cfg)
    dataset_class = dataset.type
    if isinstance(dataset_class, str):
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
            dataset_class = datasets.get(dataset_class)
    given = dataset.get('metainfo')
    names = {'classes': dataset['classes']} if dataset.get('classes') else {}
    return {
        **getattr(dataset_class, 'METAINFO', {}),
        **(given if isinstance(given, dict) else {}),
        **names,  # an argument of the data sets of mmpretrain
    }


def read_classes(cfg: Config, checkpoint: str | None) -> tuple[list[str], list]:
    """Return class names, first those of a training, and colors, first of the config.

    Args:
        cfg: Config, see :func:`read_metainfo`.
        checkpoint: File of the training, if any.

    Returns:
        Names and colors, as far as they are known.
    """
    trained = {}
    if checkpoint is not None:
        register_safe_loader()
        meta = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', 'silent').get('meta')
        trained = (meta or {}).get('dataset_meta') or {}
    known = read_metainfo(cfg)
    classes = _sequence(trained.get('classes')) or _sequence(known.get('classes'))
    palettes = [_sequence(x.get('palette')) for x in (known, trained)]
    fitting = [x for x in palettes if len(x) >= len(classes)]
    return classes, fitting[0] if fitting else []


def _sequence(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else []


def _test_dataset(cfg: Config) -> ConfigDict:
    """Return the settings of the test data, the first of those that are joined."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
    return dataset


def record_sample(
    model: BaseModel,
    transforms: Sequence[Any],
    path: str,
    class_names: Sequence[str] = (),
    score_thr: float = 0.3,
) -> Sample:
    """Run a model on an image file, and record it.

    Args:
        model: Model of mmdet, mmseg or mmpretrain, in eval mode.
        transforms: Its test pipeline.
        path: Image file.
        class_names: Names of the classes.
        score_thr: Minimum score of a detection.

    Returns:
        The sample.

    Raises:
        ValueError: The model has no layers that can be recorded, or the pipeline moves
            pixels in a way that cannot be tracked.
    """
    with record(model) as recording, torch.no_grad():
        data, image, transform = run_pipeline(transforms, path)
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        (result,) = model.test_step(batch)
    sample = Sample(image, transform, recording, class_names)
    if 'pred_sem_seg' in result:
        sample.seg_map = result.pred_sem_seg.data[0].cpu().numpy()
    elif 'pred_score' in result:
        score, label = result.pred_score.max(-1)
        sample.caption = sample.describe(int(label), float(score))
    else:
        _add_instances(sample, result, score_thr)
    return sample


def _add_instances(sample: Sample, result: Any, score_thr: float) -> None:
    """Add boxes, their labels and masks to a sample."""
    found, transform = result.pred_instances.cpu(), sample.transform
    found = found[found.scores >= score_thr]
    # mmdet scales predictions back to the image, but does not undo flips and crops.
    factor = found.bboxes.new_tensor(result.get('scale_factor', (1, 1)))
    sample.boxes = transform.boxes_to_image(found.bboxes * factor.repeat(2))
    predicted = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    sample.labels = [sample.describe(*label_and_score) for label_and_score in predicted]
    if 'masks' in found:
        sample.masks = _masks_to_image(found.masks, transform, factor)


def _masks_to_image(masks: Tensor, transform: ImageTransform, factor: Tensor) -> Tensor:
    """Transform masks, (M, H', W'), ``factor`` times smaller than the input."""
    height, width = transform.image_size
    columns, rows = (
        ((torch.arange(n) + 0.5) * scale + shift) / step
        for n, scale, shift, step in zip(
            (width, height), transform.scale, transform.shift, factor, strict=True
        )
    )
    for axis, places in ((1, rows), (2, columns)):
        last = masks.shape[axis] - 1
        inside = (places >= 0) & (places < last + 1)
        masks = masks.index_select(axis, places.long().clamp(0, last))
        masks = masks & (inside[:, None] if axis == 1 else inside)
    return masks


def record_image(
    model: nn.Module,
    image: Pixels,
    size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Sample:
    """Run a backbone or a classifier on an image in memory, and record it.

    Args:
        model: A model in eval mode that takes images, (B, 3, H, W).
        image: RGB, (H, W, 3), of 8 bits.
        size: Height and width of the model's input; those of the image if None.
        mean: Mean of each channel, from 0 to 1; that of the model's ``pretrained_cfg``,
            else of ImageNet if None.
        std: Standard deviation of each channel, likewise.

    Returns:
        The sample.

    Raises:
        ValueError: The image has another shape or type, or the model has no layers that
            can be recorded.
    """
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(
            'image must be RGB with shape (H, W, 3) and dtype uint8; got '
            f'{image.shape} and {image.dtype}.'
        )
    transform = ImageTransform(image.shape[:2], image.shape[:2])
    inputs = torch.tensor(image).permute(2, 0, 1)[None] / 255
    if size is not None:
        transform = transform.resized(size)
        inputs = F.interpolate(inputs, size, mode='bilinear', antialias=True)
    known = dict(mean=MEAN, std=STD) | getattr(model, 'pretrained_cfg', {})
    mean = torch.tensor(known['mean'] if mean is None else mean).view(3, 1, 1)
    std = torch.tensor(known['std'] if std is None else std).view(3, 1, 1)
    with record(model) as recording, torch.no_grad():
        model(((inputs - mean) / std).to(next(model.parameters()).device))
    return Sample(image, transform, recording)


def choose_query_point(sample: Sample, backbone: nn.Module) -> Point:
    """Return the center of the best detection, or the point most salient to a backbone.

    Saliency is the gradient of the last feature map's spatial variance, blurred; the
    center of the image is returned for a backbone without feature maps. The point
    (x, y) is in pixels of the image.
    """
    if len(sample.boxes):
        x1, y1, x2, y2 = sample.boxes[0].tolist()
        return (x1 + x2) / 2, (y1 + y2) / 2
    if not sample.recording.output_sizes:
        height, width = sample.transform.image_size
        return width / 2, height / 2
    inputs = sample.recording.inputs.clone().requires_grad_()
    with torch.enable_grad():
        features = backbone(inputs)[-1]
        contrast = (features - features.mean((2, 3), keepdim=True)).square().sum()
        (gradient,) = torch.autograd.grad(contrast, inputs)
    height, width = sample.transform.input_size
    saliency = gradient.abs().sum(1, keepdim=True)[..., :height, :width]
    window = min(height, width) // BLUR * 2 + 1
    for _ in range(2):  # two box filters are close to a Gaussian
        saliency = F.avg_pool2d(saliency, window, 1, window // 2)
    row, column = divmod(int(saliency.argmax()), width)
    x, y = sample.transform.to_image(torch.tensor([column + 0.5, row + 0.5])).tolist()
    return x, y
