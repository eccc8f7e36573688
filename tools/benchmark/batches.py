"""Batches of noise, as the loaders of the hosts give them."""

from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

MOST_BOXES = 5  # in a picture


def random_batch(cfg: Config, size: tuple[int, int], count: int) -> dict[str, Any]:
    """Draw pictures with labels, boxes or maps of labels.

    Args:
        cfg: Config of a classifier, a detector or a segmentor.
        size: Height and width of the pictures.
        count: Their number.

    Returns:
        ``inputs``, pictures of bytes (3, H, W), and ``data_samples``, as the model's
        ``train_step`` and ``test_step`` take them. Pictures for a detector have
        different numbers of boxes, some none.
    """
    pictures = torch.randint(256, (count, 3, *size), dtype=torch.uint8)
    draw = DRAWN[cfg.default_scope]
    return dict(
        inputs=list(pictures), data_samples=[draw(cfg.model, size) for _ in pictures]
    )


def _labeled(model: dict[str, Any], size: tuple[int, int]) -> BaseDataElement:
    sample = import_module('mmpretrain.structures').DataSample(metainfo=_sizes(size))
    return sample.set_gt_label(torch.randint(model['head']['num_classes'], (1,)))


def _boxed(model: dict[str, Any], size: tuple[int, int]) -> BaseDataElement:
    sample = import_module('mmdet.structures').DetDataSample(metainfo=_sizes(size))
    count = int(torch.randint(MOST_BOXES + 1, ()))
    sample.gt_instances = InstanceData(
        bboxes=_boxes(count, size),
        labels=torch.randint(model['bbox_head']['num_classes'], (count,)),
    )
    return sample


def _boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Corners (x1, y1, x2, y2) in pixels, (count, 4)."""
    low, side = torch.rand(2, count, 2).mul_(0.5)
    return torch.cat([low, low + side], dim=1) * torch.tensor(size[::-1]).repeat(2)


def _mapped(model: dict[str, Any], size: tuple[int, int]) -> BaseDataElement:
    sample = import_module('mmseg.structures').SegDataSample(metainfo=_sizes(size))
    labels = torch.randint(model['decode_head']['num_classes'], (1, *size))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def _sizes(size: tuple[int, int]) -> dict[str, Any]:
    return dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))


DRAWN = dict(mmpretrain=_labeled, mmdet=_boxed, mmseg=_mapped)
