"""Run a model of mmdet, mmseg or mmpretrain on an image or a frame."""

import importlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData

from mmsparse.apis import build_model, load_weights
from mmsparse.datasets.errors import SampleError, blame_files
from mmsparse.errors import UsageError
from mmsparse.visualization import read_classes, read_pipeline
from mmsparse.visualization.image_transform import ANNOTATIONS, Pixels

PREDICTED = ('pred_instances', 'pred_sem_seg', 'pred_score')  # of predictions


class Predictor:
    """A model, its test pipeline, and the names and colors of its classes.

    Args:
        cfg: Config whose library is registered.
        checkpoint: File of the weights.
        device: For example ``cpu`` or ``cuda:0``.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str) -> None:
        self.model = build_model(cfg)
        load_weights(self.model, checkpoint)
        self.model.to(device).eval()
        self.transforms = read_pipeline(cfg)
        # Files of other channels may be none that OpenCV reads as colors.
        self.loads_colors = getattr(self.transforms[0], 'color_type', '') == 'color'
        self.classes, self.palette = read_classes(cfg, checkpoint)

    def __call__(
        self, path: str, frame: Pixels | None = None
    ) -> tuple[Pixels, BaseDataElement]:
        """Predict on an image.

        Args:
            path: Image file, or the video of the frame.
            frame: Frame of a video, BGR, (H, W, 3).

        Returns:
            The image as the model saw it, before its size was changed, RGB of 8 bits,
            (H, W, 3), and the prediction on it, on the CPU.
        """
        with blame_files(path):
            image, data = self._load(path, frame)
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        try:
            with torch.no_grad():
                (result,) = self.model.test_step(batch)
        except ValueError as error:  # of a backbone, about the size of the image
            raise SampleError(f'{path}: {error}') from error
        result = result.cpu()
        if 'pred_panoptic_seg' in result:
            result.pred_instances = _segments(result, len(self.classes))
        if not any(key in result for key in PREDICTED):
            raise UsageError(
                f'model.type: a model that predicts {", ".join(PREDICTED)} or '
                f'pred_panoptic_seg can be drawn; {type(self.model).__name__} predicts '
                f'{", ".join(result.keys()) or "nothing"}'
            )
        return image, result

    def _load(
        self, path: str, frame: Pixels | None
    ) -> tuple[Pixels, Mapping[str, Any]]:
        """Run the pipeline; return the image as it was loaded, and its result."""
        data: dict[str, Any] = dict(img_path=path, img_id=0, sample_idx=0)
        image = None
        for transform in self.transforms:
            name = type(transform).__name__
            if name.endswith(ANNOTATIONS):
                continue
            if frame is not None and name.startswith('LoadImage'):
                data.update(_load_frame(frame, transform))
            else:
                data = transform(data)
            if image is None:
                image = _as_rgb(data['img'])
        return image, data


def _segments(result: BaseDataElement, num_classes: int) -> InstanceData:
    """Return the segments of a panoptic segmentation as masks with labels."""
    segments = result.pred_panoptic_seg.sem_seg  # (1, H, W)
    offset = importlib.import_module('mmdet.evaluation.functional').INSTANCE_OFFSET
    found = segments.unique()
    found = found[found % offset < num_classes]  # the others are of no class
    return InstanceData(labels=found % offset, masks=segments == found[:, None, None])


def _load_frame(frame: Pixels, loader: Any) -> dict[str, Any]:
    """Return what a transform that loads images would of a file with this frame."""
    if getattr(loader, 'color_type', 'color') == 'grayscale':
        frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    if getattr(loader, 'to_float32', False):
        frame = frame.astype(np.float32)
    return dict(img=frame, img_shape=frame.shape[:2], ori_shape=frame.shape[:2])


def _as_rgb(image: np.ndarray) -> Pixels:
    """Convert a loaded image, BGR of any type and number of channels, to RGB."""
    image = image.reshape(*image.shape[:2], -1)
    if image.shape[2] < 3:  # gray
        image = image[..., :1].repeat(3, axis=2)
    if image.dtype == np.uint16:
        image = image / 257
    return np.ascontiguousarray(image[..., 2::-1].clip(0, 255).astype(np.uint8))
