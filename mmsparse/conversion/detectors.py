"""Convert official detectors to those of mmdet."""

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsparse.checkpoint.state_dict import find_prefix
from mmsparse.conversion.host_backbones import find_backbone
from mmsparse.conversion.layout import Entry, Weights, below, compare, translate

ClassIds = Collection[int] | str | None


@dataclass(frozen=True)
class Detector:
    """A family of official detectors."""

    name: str
    markers: tuple[str, ...]  # each a regular expression of the start of some keys
    backbone: str  # prefix of its keys
    # From a key to that of the tensor that it repeats, or to itself.
    alias_of: Callable[[str, Weights], str]
    widths: Callable[[Weights], list[int]]  # of feature maps, read from the neck
    layout: Callable[[Weights, Sequence[int]], list[Entry]]  # of all but the backbone
    variant: Callable[[Weights], str]  # its name
    note: str  # settings of mmdet's config that the weights need
    unused: str = r'(?!)'  # regular expression of keys that the authors ignore, too
    lacks: str = r'(?!)'  # regular expression of the start of keys of other detectors
    # From the weights and ``class_ids`` of ``convert_official`` to the weights with
    # the rows of these ids; None for families that have a row for each class.
    select_classes: Callable[[Weights, ClassIds], Weights] | None = None

    def prefix(self, keys: Collection[str]) -> str | None:
        """Return the prefix of the family's keys, for example ``module.``, or None."""
        if find_prefix(keys, self.lacks) is not None:
            return None
        found = {find_prefix(keys, marker) for marker in self.markers}
        return found.pop() if len(found) == 1 else None

    def convert(
        self, weights: Weights, backbone_only: bool, class_ids: ClassIds = None
    ) -> tuple[str, dict[str, Tensor]]:
        """Return a description of the model, and mmdet's state dict.

        ``weights`` is the official state dict without prefix, with or without a
        backbone. An unknown one and weights that do not fit raise ValueError.
        """
        arch = self.variant(weights)
        weights = {k: x for k, x in weights.items() if not re.search(self.unused, k)}
        weights = self._without_aliases(weights)
        if self.select_classes is not None:
            weights = self.select_classes(weights, class_ids)
        of_backbone = {k: x for k, x in weights.items() if k.startswith(self.backbone)}
        if backbone_only and not of_backbone:
            raise ValueError(
                f'backbone_only=True needs a backbone to convert; the {self.name} '
                f'checkpoint has none.'
            )
        widths, entries = self.widths(weights), []
        if of_backbone:
            names = {k.removeprefix(self.backbone): x for k, x in of_backbone.items()}
            backbone = find_backbone(names, len(widths))
            if backbone is None:
                raise ValueError(
                    f'The backbone of a {self.name} checkpoint must be a ResNet or a '
                    f'Swin Transformer; its keys begin with {list(of_backbone)[:3]}.'
                )
            arch = f'{arch}, {backbone.name}'
            widths = backbone.widths[-len(widths) :]
            entries = below(self.backbone, 'backbone.', backbone.layout)
        if backbone_only:
            weights = of_backbone
        else:
            entries += self.layout(weights, widths)
        if mismatch := compare(weights, entries):
            raise ValueError(
                f'The checkpoint does not fit {self.name}, {arch}: {mismatch}.'
            )
        return arch, translate(weights, entries)

    def _without_aliases(self, weights: Weights) -> Weights:
        kept = {}
        for key, tensor in weights.items():
            alias = self.alias_of(key, weights)
            if alias == key or alias not in weights:
                kept[key] = tensor
            elif not (tensor.is_meta or torch.equal(tensor, weights[alias])):
                warnings.warn(
                    f'{key} should repeat {alias}, but differs from it; the latter is '
                    f'converted.',
                    stacklevel=2,
                )
        return kept


def alias_in_decoder(key: str, weights: Weights) -> str:
    """Return the key in the head that one in the decoder repeats, or the key itself."""
    return re.sub(r'^transformer\.decoder\.(class|bbox)_embed\.', r'\1_embed.', key)
