"""What the converter knows of each family; a new family is a new entry here."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmsparse.checkpoint.safe_pickle import walk
from mmsparse.checkpoint.state_dict import find_prefix
from mmsparse.conversion import biformer, dat, shunted
from mmsparse.conversion.deformable_detr import DEFORMABLE_DETR
from mmsparse.conversion.dino import DINO
from mmsparse.conversion.focus_detr import FOCUS_DETR
from mmsparse.models import DAT, BiFormer, ShuntedTransformer
from mmsparse.models.backbones.base import StagedBackbone

Arch = str | Mapping[str, Any]
BACKBONE, HEAD = 'backbone.', 'head.fc.'  # where the host's classifier has them


def _same(key: str, tensor: Tensor) -> Tensor:
    return tensor


def _all(archs: list[str], keys: Collection[str], checkpoint: Any) -> list[str]:
    return archs


@dataclass(frozen=True)
class Family:
    """One family of official checkpoints, and our backbone for it.

    Args:
        name: What users call it.
        backbone: Our class.
        marker: Regular expression of the start of some keys, which no other family
            has.
        head: Official name of the classifier's linear map.
        rename_key: Official key of the backbone to ours; None for what we compute.
        official_key: The inverse for an arch.
        convert_tensor: Official key and tensor to our tensor.
        narrow: Where shapes cannot tell the archs apart: those of the archs that the
            official keys and the whole checkpoint allow. Raises ValueError if the
            user has to say it.
    """

    name: str
    backbone: type[StagedBackbone]
    marker: str
    head: str
    rename_key: Callable[[str], str | None]
    official_key: Callable[[str, Arch], str]
    convert_tensor: Callable[[str, Tensor], Tensor] = _same
    narrow: Callable[[list[str], Collection[str], Any], list[str]] = _all

    def prefix(self, keys: Collection[str]) -> str | None:
        """Find what stands before the keys of the family, ``module.`` for example.

        Args:
            keys: Keys of a state dict.

        Returns:
            The prefix, mostly empty; None if the keys are not those of this family.
        """
        return find_prefix(keys, self.marker)

    def rename(self, official: str) -> str | None:
        """Translate a key of the whole model.

        Args:
            official: Key without prefix, for example ``head.weight``.

        Returns:
            Key in the host's classifier, for example ``head.fc.weight``; None for what
            we compute.
        """
        if official.startswith(f'{self.head}.'):
            return HEAD + official.removeprefix(f'{self.head}.')
        ours = self.rename_key(official)
        return None if ours is None else BACKBONE + ours

    def official(self, ours: str, arch: Arch) -> str:
        """Translate a key of the host's classifier; the inverse of :meth:`rename`.

        Args:
            ours: Key in the host's classifier.
            arch: Name of the arch, or a dict.

        Returns:
            The official key, without prefix.
        """
        if ours.startswith(HEAD):
            return f'{self.head}.{ours.removeprefix(HEAD)}'
        return self.official_key(ours.removeprefix(BACKBONE), arch)

    def shapes(
        self, arch: Arch, state_dict: Mapping[str, Tensor]
    ) -> dict[str, torch.Size]:
        """Look up the shapes of a host model's state dict.

        Args:
            arch: Name of the arch, or a dict.
            state_dict: The state dict to compare with; it says which outputs have norms
                of which kind, and whether there is a classifier's head.

        Returns:
            The shape of every entry.
        """
        norms = [found for key in state_dict if (found := _OUT_NORM.match(key))]
        outputs: dict[str, Any] = {}
        if norms:
            outputs['out_norm'] = norms[0]['kind']
            outputs['out_indices'] = sorted({int(found['stage']) for found in norms})
        with torch.device('meta'):
            backbone = self.backbone(arch, **outputs)
        shapes = {BACKBONE + key: x.shape for key, x in backbone.state_dict().items()}
        head = [x for key, x in state_dict.items() if key.startswith(HEAD)]
        if head:
            classes = max((len(x) for x in head if x.ndim), default=0)
            shapes[f'{HEAD}weight'] = torch.Size((classes, self.width(arch)))
            shapes[f'{HEAD}bias'] = torch.Size((classes,))
        return shapes

    def width(self, arch: Arch) -> int:
        """Look up the width of the last stage.

        Args:
            arch: Name of the arch, or a dict.

        Returns:
            C of the map that is classified.
        """
        return self.widths(arch)[-1]

    def widths(self, arch: Arch) -> Sequence[int]:
        """Look up the widths of all stages.

        Args:
            arch: Name of the arch, or a dict.

        Returns:
            C of the map of every stage.
        """
        settings = self.backbone.arch_settings[arch] if isinstance(arch, str) else arch
        return settings['embed_dims']


_OUT_NORM = re.compile(r'backbone\.out_norms\.(?P<kind>[a-z]+)(?P<stage>\d+)\.')


def _dat_archs(archs: list[str], keys: Collection[str], checkpoint: Any) -> list[str]:
    """Tell the two formulations apart, which compute other things with equal shapes."""
    if len(archs) == 1:
        return archs
    formulation = _dat_formulation(keys, checkpoint)
    of_each = {
        arch: settings['formulation'] for arch, settings in DAT.arch_settings.items()
    }
    if formulation is None:
        published = sorted(arch for arch in archs if of_each[arch] == 'v2022')
        raise ValueError(
            'These weights may be of the code of 2022 or of 2023, which has the same '
            'keys and shapes for window and deformable attention, but computes '
            'something else. Neither the keys nor options within the checkpoint '
            f'tell. Give arch: one of {published} if they are of 2022, a dict if not.'
        )
    return [arch for arch in archs if of_each[arch] == formulation]


def _dat_formulation(keys: Collection[str], checkpoint: Any) -> str | None:
    parts = {part for key in keys for part in key.split('.')}
    if parts & {'rpb', 'local_perception_units'}:
        return 'v2023'
    options = {key for key, _ in walk(checkpoint)}  # of the model, if they are kept
    if options & {'ksizes', 'nat_ksizes', 'use_lpus', 'log_cpb'}:
        return 'v2023'
    return 'v2022' if 'stage_spec' in options else None


def _official_dat_key(ours: str, arch: Arch) -> str:
    found = re.match(r'stages\.(\d+)\.(\d+)\.', ours)
    if found is None:
        return dat.official_key(ours)
    settings = DAT.arch_settings[arch] if isinstance(arch, str) else arch
    stage, block = int(found[1]), int(found[2])
    types, conv_mlp = settings['kinds'][stage], settings.get('conv_mlp', False)
    if not isinstance(conv_mlp, bool):
        conv_mlp = conv_mlp[stage]
    return dat.official_key(ours, types[block % len(types)], conv_mlp)


def _biformer_archs(
    archs: list[str], keys: Collection[str], checkpoint: Any
) -> list[str]:
    """Tell the two STL models apart, which compute other things with equal shapes."""
    refactored = any('.qkv_linear.' in key for key in keys)
    return [arch for arch in archs if (arch == 'stl-nchw') == refactored]


def _official_biformer_key(ours: str, arch: Arch) -> str:
    known = isinstance(arch, str) and arch in biformer.LAYOUTS
    return biformer.official_key(ours, arch if known else 'biformer')


def _convert_biformer_tensor(official: str, tensor: Tensor) -> Tensor:
    return biformer.convert_tensor(biformer.rename_key(official), tensor)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name='biformer',
            backbone=BiFormer,
            marker=r'stages\.\d+\.(blocks\.)?\d+\.attn\.(lepe|qkv\.qkv|qkv_linear)\.',
            head='head',
            rename_key=biformer.rename_key,
            official_key=_official_biformer_key,
            convert_tensor=_convert_biformer_tensor,
            narrow=_biformer_archs,
        ),
        Family(
            name='dat',
            backbone=DAT,
            marker=r'stages\.\d+\.attns\.\d+\.',
            head='cls_head',
            rename_key=dat.rename_key,
            official_key=_official_dat_key,
            convert_tensor=dat.convert_tensor,
            narrow=_dat_archs,
        ),
        Family(
            name='shunted',
            backbone=ShuntedTransformer,
            marker=r'block\d+\.\d+\.attn\.(sr1|kv1|local_conv)\.',
            head='head',
            rename_key=shunted.rename_key,
            official_key=lambda ours, arch: shunted.official_key(ours),
        ),
    )
}

DETECTORS = {
    detector.name: detector for detector in (DEFORMABLE_DETR, DINO, FOCUS_DETR)
}
