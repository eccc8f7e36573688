"""What the cases of every backbone family need: a classifier, and looking inside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Classifier(nn.Module):
    """A backbone with mean and linear map, keyed as the host's classifier.

    Args:
        backbone: Returns a tuple of maps; the last one, (B, C, H, W), is classified.
        channels: C of that map.
        num_classes: Number of classes.
    """

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({'fc': nn.Linear(channels, num_classes)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits of (B, num_classes)."""
        return self.head['fc'](self.backbone(x)[-1].mean((2, 3)))


@contextmanager
def recorded_outputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Note what every part of a model returns.

    Args:
        model: The model, run inside the context.

    Yields:
        The last output of every module that ran, by its name without ``backbone.``, in
        the order of the runs.
    """
    outputs: dict[str, Any] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            outputs[name] = output

        return hook

    handles = [
        module.register_forward_hook(note(name.removeprefix('backbone.')))
        for name, module in model.named_modules()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
