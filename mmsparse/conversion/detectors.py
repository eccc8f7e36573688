"""Official detectors to those of mmdet."""

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsparse.checkpoint.state_dict import find_prefix, listed
from mmsparse.conversion.host_backbones import HostBackbone, find_backbone
from mmsparse.conversion.layout import Entry, Weights, below, faults, translate


@dataclass(frozen=True)
class Detector:
    """One family of official detectors.

    Args:
        name: What users call it.
        marker: Regular expression of the start of some names, which no other family
            has.
        backbone: What stands before the names of its backbone.
        twin: Name of a tensor, and all weights, to the name of the tensor that it
            repeats; to its own if there is none.
        widths: Weights to the widths of the backbone's maps that the neck takes, as
            its convolutions show them.
        layout: Weights and those widths to the entries of all but the backbone.
        variant: Weights to the name of the variant.
        note: What the host's model needs for the weights.
    """

    name: str
    marker: str
    backbone: str
    twin: Callable[[str, Weights], str]
    widths: Callable[[Weights], list[int]]
    layout: Callable[[Weights, Sequence[int]], list[Entry]]
    variant: Callable[[Weights], str]
    note: str

    def prefix(self, names: Collection[str]) -> str | None:
        """Find what stands before the names of the family, ``module.`` for example.

        Args:
            names: Names of a state dict.

        Returns:
            The prefix, mostly empty; None if the names are not those of this family.
        """
        return find_prefix(names, self.marker)

    def convert(
        self, weights: Weights, backbone_only: bool
    ) -> tuple[str, dict[str, Tensor]]:
        """Convert the weights of a detector.

        Args:
            weights: The official state dict without prefix; it may have no backbone.
            backbone_only: Leave out all but the backbone.

        Returns:
            What was recognized, and mmdet's state dict.

        Raises:
            ValueError: The backbone is unknown, or names are missing, left over or of
                another shape; the message lists them.
        """
        arch = self.variant(weights)
        weights = self._without_aliases(weights)
        own = {k: x for k, x in weights.items() if k.startswith(self.backbone)}
        widths, entries = self.widths(weights), []
        if own:
            backbone = self._find_backbone(own, len(widths))
            arch = f'{arch}, {backbone.name}'
            widths = backbone.widths[-len(widths) :]
            entries = below(self.backbone, 'backbone.', backbone.layout)
        if backbone_only:
            weights = own
        else:
            entries += self.layout(weights, widths)
        if found := faults(weights, entries):
            details = (f'{kind}: {listed(names)}' for kind, names in found.items())
            raise ValueError(
                f'The checkpoint does not fit {self.name}, {arch}: '
                f'{"; ".join(details)}.'
            )
        return arch, translate(weights, entries)

    def _without_aliases(self, weights: Weights) -> Weights:
        kept = {}
        for name, tensor in weights.items():
            twin = self.twin(name, weights)
            if twin == name or twin not in weights:
                kept[name] = tensor
            elif not _equal(tensor, weights[twin]):
                warnings.warn(
                    f'{name} is stored beside {twin} and differs from it; the '
                    f'latter is converted.',
                    stacklevel=2,
                )
        return kept

    def _find_backbone(self, weights: Weights, num_outputs: int) -> HostBackbone:
        names = {k.removeprefix(self.backbone): x for k, x in weights.items()}
        backbone = find_backbone(names, num_outputs)
        if backbone is None:
            raise ValueError(
                f'The backbone of a {self.name} checkpoint must be a ResNet or a Swin '
                f'Transformer; its keys begin with {list(weights)[:3]}.'
            )
        return backbone


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.is_meta or torch.equal(one, other)


def decoder_twin(name: str, weights: Weights) -> str:
    """Find what the decoder repeats: the heads.

    Args:
        name: Official name of a tensor.
        weights: The official state dict.

    Returns:
        Name of the head's tensor; the name itself for others.
    """
    return re.sub(r'^transformer\.decoder\.(class|bbox)_embed\.', r'\1_embed.', name)
