"""Official model families that can be converted: one entry for each."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmsparse.checkpoint.coverage import Official
from mmsparse.checkpoint.safe_pickle import walk
from mmsparse.checkpoint.state_dict import find_prefix, shapes_of
from mmsparse.conversion import biformer, dat, shunted
from mmsparse.conversion.deformable_detr import DEFORMABLE_DETR
from mmsparse.conversion.detr import DETR, DETR_PANOPTIC
from mmsparse.conversion.dino import DINO, MMDET_DINO
from mmsparse.conversion.focus_detr import FOCUS_DETR
from mmsparse.conversion.relatives import find_relative
from mmsparse.conversion.sparse_detr import SPARSE_DETR
from mmsparse.models.backbones import BACKBONES, DAT
from mmsparse.models.backbones.base import StagedBackbone, recognize_official
from mmsparse.onedl import has_wide_dino

Arch = str | Mapping[str, Any]
BACKBONE, HEAD = 'backbone.', 'head.fc.'  # prefixes in mmpretrain's classifier
OUT_NORM = re.compile(r'backbone\.out_norms\.(?P<kind>[a-z]+)(?P<stage>\d+)\.')


@dataclass(frozen=True)
class Family:
    """A family of official checkpoints, and the backbone for it."""

    name: str  # a key of BACKBONES
    head: str  # official name of the classifier's linear layer
    rename_key: Callable[[str], str | None]  # None for buffers that mmsparse computes
    official_key: Callable[[str, Arch], str]  # its inverse for an arch
    # From the official key and tensor.
    convert_tensor: Callable[[str, Tensor], Tensor] = lambda key, tensor: tensor
    # From archs of equal shapes, official keys and the checkpoint to the archs that
    # these allow; raises ValueError if the user has to decide.
    disambiguate: Callable[[list[str], Collection[str], Any], list[str]] = (
        lambda archs, keys, checkpoint: archs
    )

    @property
    def backbone(self) -> type[StagedBackbone]:
        """Class of the backbone."""
        return BACKBONES[self.name]

    def prefix(self, keys: Collection[str]) -> str | None:
        """Return the prefix of the family's keys, for example ``module.``, or None."""
        return find_prefix(keys, self.backbone.official_keys)

    def rename(self, official: str) -> str | None:
        """Translate an official key to that of mmpretrain's model; None if computed."""
        if official.startswith(f'{self.head}.'):
            return HEAD + official.removeprefix(f'{self.head}.')
        key = self.rename_key(official)
        return None if key is None else BACKBONE + key

    def official(self, key: str, arch: Arch) -> str:
        """Invert :meth:`rename`."""
        if key.startswith(HEAD):
            return f'{self.head}.{key.removeprefix(HEAD)}'
        return self.official_key(key.removeprefix(BACKBONE), arch)

    def shapes(
        self, arch: Arch, state_dict: Mapping[str, Tensor]
    ) -> dict[str, torch.Size]:
        """Return the shape of every tensor of mmpretrain's model by key.

        The converted weights determine the norms of the outputs and the head.
        """
        norms = [found for key in state_dict if (found := OUT_NORM.match(key))]
        outputs: dict[str, Any] = {}
        if norms:
            stages = sorted({int(found['stage']) for found in norms})
            outputs = dict(out_norm=norms[0]['kind'], out_indices=stages)
        with torch.device('meta'):
            backbone = self.backbone(arch, **outputs)
        shapes = shapes_of({BACKBONE + k: x for k, x in backbone.state_dict().items()})
        head = [x for key, x in state_dict.items() if key.startswith(HEAD)]
        if head:
            classes = max((len(x) for x in head if x.ndim), default=0)
            shapes[f'{HEAD}weight'] = torch.Size((classes, self.widths(arch)[-1]))
            shapes[f'{HEAD}bias'] = torch.Size((classes,))
        return shapes

    def widths(self, arch: Arch) -> Sequence[int]:
        """Return the number of channels of every stage."""
        return self.backbone.resolve_arch(arch).embed_dims


def _dat_archs(archs: list[str], keys: Collection[str], checkpoint: Any) -> list[str]:
    """Separate the formulations of 2022 and 2023, which differ at equal shapes."""
    if len(archs) == 1:
        return archs
    formulation = _dat_formulation(keys, checkpoint)
    of_each = {x: settings.formulation for x, settings in DAT.arch_settings.items()}
    if formulation is None:
        published = sorted(arch for arch in archs if of_each[arch] == 'v2022')
        raise ValueError(
            'These weights may be of the code of 2022 or of 2023. Both have the same '
            'keys and shapes for window and deformable attention, but compute '
            'different functions, and the checkpoint has no options that decide. Give '
            f'arch: one of {published} if they are of 2022, else a dict.'
        )
    return [arch for arch in archs if of_each[arch] == formulation]


def _dat_formulation(keys: Collection[str], checkpoint: Any) -> str | None:
    parts = {part for key in keys for part in key.split('.')}
    if parts & {'rpb', 'local_perception_units'}:
        return 'v2023'
    options = {key for key, _ in walk(checkpoint)}  # of the model, if it stores them
    if options & {'ksizes', 'nat_ksizes', 'use_lpus', 'log_cpb'}:
        return 'v2023'
    return 'v2022' if 'stage_spec' in options else None


def _biformer_archs(
    archs: list[str], keys: Collection[str], checkpoint: Any
) -> list[str]:
    """Separate the two STL models, which differ at equal shapes."""
    refactored = any('.qkv_linear.' in key for key in keys)
    return [arch for arch in archs if (arch == 'stl-nchw') == refactored]


def _official_dat_key(key: str, arch: Arch) -> str:
    found = re.match(r'stages\.(\d+)\.(\d+)\.', key)
    if found is None:
        return dat.official_key(key)
    settings = DAT.resolve_arch(arch)
    stage, block = int(found[1]), int(found[2])
    types, conv_mlp = settings.block_types[stage], settings.mlp_kernels[stage] > 0
    return dat.official_key(key, types[block % len(types)], conv_mlp)


def _official_biformer_key(key: str, arch: Arch) -> str:
    known = isinstance(arch, str) and arch in biformer.LAYOUTS
    return biformer.official_key(key, arch if known else 'biformer')


def _convert_biformer_tensor(official: str, tensor: Tensor) -> Tensor:
    return biformer.convert_tensor(biformer.rename_key(official), tensor)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name='biformer',
            head='head',
            rename_key=biformer.rename_key,
            official_key=_official_biformer_key,
            convert_tensor=_convert_biformer_tensor,
            disambiguate=_biformer_archs,
        ),
        Family(
            name='dat',
            head='cls_head',
            rename_key=dat.rename_key,
            official_key=_official_dat_key,
            convert_tensor=dat.convert_tensor,
            disambiguate=_dat_archs,
        ),
        Family(
            name='shunted',
            head='head',
            rename_key=shunted.rename_key,
            official_key=lambda key, arch: shunted.official_key(key),
        ),
    )
}

# The first that fits counts: the panoptic model contains a DETR, and the keys that mark
# a Deformable DETR are in DETR and Sparse DETR, too.
DETECTORS = {
    family.name: family
    for family in (
        DETR_PANOPTIC,
        DETR,
        SPARSE_DETR,
        DEFORMABLE_DETR,
        DINO,
        FOCUS_DETR,
        *([MMDET_DINO] if has_wide_dino() else []),
    )
}


def recognize(keys: Collection[str]) -> Official | None:
    """Describe official weights of any family or relative; None for any others."""
    relative = find_relative(keys)
    if relative is not None:
        return Official(str(relative), convertible=False)
    for family in DETECTORS.values():
        if family.prefix(keys) is not None:
            return Official.of_family(family.name)
    return recognize_official(keys)
