"""Backbones of timm to compare with, if timm is installed."""

from typing import Any

import torch
from torch import nn

SIZES = ('tiny', 'small', 'base')


def timm_backbones(parameters: int, size: tuple[int, int]) -> dict[str, nn.Module]:
    """Build the Swin and the ConvNeXt of timm with the nearest number of parameters.

    Args:
        parameters: Number of parameters of the backbone to compare with.
        size: Height and width of the images.

    Returns:
        The backbones by name, with random weights; empty if timm is not installed.
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
    """Return the number of parameters of a model."""
    return sum(x.numel() for x in model.parameters())


class _Features(nn.Module):
    """A model of timm without its head, with the interface of mmsparse's backbones."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.reset_classifier(0)
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, 3, H, W) to the last feature map, for a classifier."""
        return (self.model.forward_features(x),)
