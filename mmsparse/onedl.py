"""What differs in OneDL's forks of the hosts: names of packages, and DINO's boxes."""

from importlib.metadata import PackageNotFoundError, version

import torch
from mmengine.config.utils import MODULE2PACKAGE
from torch import Tensor


def resolve_segmentation() -> None:
    """Let mmengine find configs of ``mmseg::`` in OneDL's fork of mmsegmentation.

    onedl-mmengine searches for a package with OpenMMLab's name, mmsegmentation. Nothing
    changes where that is installed.
    """
    if _installed('onedl-mmsegmentation') and not _installed('mmsegmentation'):
        MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'


def has_wide_dino() -> bool:
    """Return whether mmdet's DINO is OneDL's, with 4 C features per box, not 2 C."""
    return _installed('onedl-mmdetection')


def widen_box_encoding(weight: Tensor) -> Tensor:
    """Convert the first weight of DINO's ``ref_point_head`` to that of OneDL's DINO.

    Both encode each of the four coordinates by pairs of sine and cosine, OneDL with
    twice as many frequencies, every other of which is one of OpenMMLab's. The weights
    of the others are zero, so that the outputs are equal.

    Args:
        weight: (out, 4 features), with an even number of features per coordinate.

    Returns:
        (out, 8 features).
    """
    pairs = weight.unflatten(1, (-1, 1, 2))
    return torch.cat([pairs, torch.zeros_like(pairs)], dim=2).flatten(1)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
