"""Backbones of timm that ours are compared with, if it is installed."""

from typing import Any

import torch
from torch import nn

SIZES = ('tiny', 'small', 'base')


def timm_backbones(parameters: int, size: tuple[int, int]) -> dict[str, nn.Module]:
    """Build the Swin Transformer and the ConvNeXt nearest to a number of parameters.

    Args:
        parameters: Of the backbone to compare with.
        size: Height and width of the pictures.

    Returns:
        The backbones by name, with random weights; none where timm is not installed.
    """
    try:
        import timm
    except ImportError:
        return {}
    found = {}
    for family, pattern, options in (
        ('swin', 'swin_{}_patch4_window7_224', dict(img_size=size)),
        ('convnext', 'convnext_{}', {}),
    ):
        sizes = {}
        for name in SIZES:
            with torch.device('meta'):
                model = timm.create_model(pattern.format(name), **options)
            sizes[name] = count_parameters(model)
        nearest = min(SIZES, key=lambda name: abs(sizes[name] - parameters))
        found[f'timm {family}_{nearest}'] = _Features(
            timm.create_model(pattern.format(nearest), **options)
        )
    return found


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a model learns.

    Args:
        model: Any.

    Returns:
        Their number.
    """
    return sum(x.numel() for x in model.parameters())


class _Features(nn.Module):
    """A model of timm without its head, called as a backbone of ours is."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.reset_classifier(0)
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, 3, H, W) to the last map alone, as a classifier wants it."""
        return (self.model.forward_features(x),)
