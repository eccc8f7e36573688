"""Substitute of ``mmcv._ext``: what common detectors call, computed by torchvision.

Names and arguments are mmcv's. All its other functions raise an error when they are
called.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
import torchvision.ops
from torch import Tensor

AVERAGE = 1  # mmcv's number for this pool_mode


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that are kept, best first.

    Args:
        boxes: (x1, y1, x2, y2), (n, 4).
        scores: (n,).
        iou_threshold: Boxes with a larger IoU with a better one are dropped.
        offset: Added to the width and height of boxes, 0 or 1.

    Returns:
        (kept,).
    """
    ends = boxes[:, 2:] + offset
    boxes = torch.cat([boxes[:, :2], ends], dim=1).float()
    return torchvision.ops.nms(boxes, scores.float(), iou_threshold)


def roi_align_forward(
    features: Tensor,  # (B, C, H, W)
    rois: Tensor,  # image, x1, y1, x2, y2, (n, 5)
    output: Tensor,  # (n, C, height, width), overwritten
    argmax_y: Tensor,
    argmax_x: Tensor,
    **options: Any,
) -> None:
    """Pool a feature map in boxes."""
    output.copy_(_roi_align(features, rois, **options))


def roi_align_backward(
    grad_output: Tensor,  # (n, C, height, width)
    rois: Tensor,  # (n, 5)
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_features: Tensor,  # (B, C, H, W), overwritten
    **options: Any,
) -> None:
    """Compute the gradient of the feature map, in which pooling is linear."""
    with torch.enable_grad():
        features = torch.zeros_like(grad_features, requires_grad=True)
        pooled = _roi_align(features, rois, **options)
    (gradient,) = torch.autograd.grad(pooled, features, grad_output.to(pooled.dtype))
    grad_features.copy_(gradient)


def _roi_align(
    features: Tensor,
    rois: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    """Return (n, C, height, width), in float32 for half precision."""
    if pool_mode != AVERAGE:
        _refuse('roi_align with pool_mode="max"')
    dtype = torch.promote_types(features.dtype, torch.float32)
    return torchvision.ops.roi_align(
        features.to(dtype),
        rois.to(dtype),
        (aligned_height, aligned_width),
        spatial_scale,
        sampling_ratio,
        aligned,
    )


def get_compiler_version() -> str:
    """Return what mmcv's environment report prints as the compiler."""
    return 'not compiled'


def get_compiling_cuda_version() -> str:
    """Return mmcv's word for operators that are not compiled for GPUs."""
    return 'not available'


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Return a function that raises an error, for each of mmcv's other operators."""
    if name.startswith('__'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return partial(_refuse, name)


def _refuse(name: str, *args: Any, **options: Any) -> NoReturn:
    raise NotImplementedError(
        f"mmcv's operator {name} is not compiled, and mmsparse has no substitute; "
        'compile mmcv by the command that `mmsparse doctor` prints.'
    )
