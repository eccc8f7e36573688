"""Official checkpoints to state dicts of host models."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmsparse.checkpoint.state_dict import find_state_dict, listed
from mmsparse.conversion.detectors import Detector
from mmsparse.conversion.families import BACKBONE, DETECTORS, FAMILIES, Arch, Family
from mmsparse.conversion.segmentors import convert_heads


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint, and what was recognized.

    Args:
        family: Name of the family.
        arch: The arch that fits; of a detector, a description of what it is.
        state_dict: The weights under the host model's names.
        note: What the host's model needs for them, if anything.
    """

    family: str
    arch: Arch
    state_dict: dict[str, Tensor]
    note: str = ''


def convert_official(
    state_dict: Mapping[str, Any],
    family: str | None = None,
    arch: Arch | None = None,
    backbone_only: bool = False,
) -> dict[str, Tensor]:
    """Convert official weights to those of a host model.

    Args:
        state_dict: An official state dict of a classifier, a dense backbone, a
            detector or a segmentor, or a whole checkpoint that holds one under
            ``state_dict`` or ``model``; what else is in the checkpoint, a ``model_ema``
            for example, is dropped.
        family: Name of the family; recognized from the keys if None.
        arch: Name of the arch, or a dict as the backbone takes it; recognized from keys
            and shapes if None. Detectors have none.
        backbone_only: Leave out a classifier's head, or what a detector or segmentor
            has around its backbone.

    Returns:
        ``backbone.*``, and for a classifier ``head.fc.*``: what mmpretrain's
        ``ImageClassifier`` with ``GlobalAveragePooling`` and ``LinearClsHead`` holds.
        For a detector what mmdet's of the same name holds, if its neck has biases;
        for a segmentor what mmsegmentation's ``EncoderDecoder`` holds, with ``neck.*``,
        ``decode_head.*`` and ``auxiliary_head.*``.

    Raises:
        ValueError: Family or arch are unknown or not recognized, or keys are missing,
            left over or of another shape; the message lists them.
    """
    return convert(state_dict, family, arch, backbone_only).state_dict


def convert(
    checkpoint: Mapping[str, Any],
    family: str | None = None,
    arch: Arch | None = None,
    backbone_only: bool = False,
) -> Conversion:
    """Convert as :func:`convert_official` does, and tell what was recognized.

    Args:
        checkpoint: A state dict, or a checkpoint with one.
        family: Name of the family, or None.
        arch: Name of the arch, a dict, or None.
        backbone_only: Leave out what is around the backbone.

    Returns:
        The weights with their family and arch.

    Raises:
        ValueError: As there.
    """
    everything = find_state_dict(checkpoint)
    chosen = find_family(everything, family)
    weights = find_model(everything, chosen, backbone_only)
    if isinstance(chosen, Detector):
        if arch is not None:
            raise ValueError(
                f'arch is for backbones of ours; got {arch!r} for a {chosen.name} '
                f'checkpoint, which tells by itself what it is.'
            )
        found, converted = chosen.convert(weights, backbone_only)
        return Conversion(chosen.name, found, converted, chosen.note)
    heads = {} if backbone_only else find_heads(everything, chosen)
    names = _rename(weights, chosen)
    converted = {
        ours: chosen.convert_tensor(name, weights[name]) for ours, name in names.items()
    }
    archs = _candidates(chosen, arch, weights, checkpoint)
    faults = {}
    for i, candidate in enumerate(archs):
        faults[i] = _compare(candidate, converted, names, chosen)
        if not faults[i]:
            if heads:
                converted |= convert_heads(heads, chosen.widths(candidate))
            return Conversion(chosen.name, candidate, converted)
    nearest = min(faults, key=lambda i: sum(map(len, faults[i].values())))
    details = (f'{kind}: {listed(keys)}' for kind, keys in faults[nearest].items())
    raise ValueError(
        f'The checkpoint does not fit {chosen.name}, arch {archs[nearest]!r}'
        f'{", the nearest of all" if len(archs) > 1 else ""}: {"; ".join(details)}.'
    )


def _rename(keys: Collection[str], family: Family) -> dict[str, str]:
    """Our keys with the official ones."""
    names: dict[str, str] = {}
    for official in keys:
        ours = family.rename(official)
        if ours in names:
            raise ValueError(
                f'{names[ours]!r} and {official!r} would both become {ours!r}.'
            )
        if ours is not None:
            names[ours] = official
    return names


def _candidates(
    family: Family, arch: Arch | None, keys: Collection[str], checkpoint: Any
) -> list[Arch]:
    if isinstance(arch, Mapping):
        return [arch]
    known = sorted(family.backbone.arch_settings)
    if arch is None:
        return family.narrow(known, keys, checkpoint)
    if arch not in known:
        raise ValueError(f'arch must be one of {known}; got {arch!r}.')
    if not family.narrow([arch], keys, checkpoint):
        raise ValueError(
            f'arch={arch!r} does not fit: the keys are those of '
            f'{family.narrow(known, keys, checkpoint)}.'
        )
    return [arch]


def _compare(
    arch: Arch,
    converted: Mapping[str, Tensor],
    names: Mapping[str, str],
    family: Family,
) -> dict[str, list[str]]:
    """Official keys that keep the weights from fitting an arch, by kind of fault."""
    shapes = family.shapes(arch, converted)
    faults = {
        'missing': [
            family.official(key, arch) for key in shapes.keys() - converted.keys()
        ],
        'left over': [names[key] for key in converted.keys() - shapes.keys()],
        'of another shape': [
            f'{names[key]} {tuple(tensor.shape)} instead of {tuple(shapes[key])}'
            for key, tensor in converted.items()
            if key in shapes and tensor.shape != shapes[key]
        ],
    }
    return {kind: sorted(keys) for kind, keys in faults.items() if keys}


def find_family(keys: Collection[str], name: str | None) -> Family | Detector:
    """Recognize the family of a state dict.

    Args:
        keys: Its keys.
        name: Name of the family, if it is known.

    Returns:
        The family.

    Raises:
        ValueError: The name is unknown, or the keys are not those of such a family.
    """
    known: dict[str, Family | Detector] = {**DETECTORS, **FAMILIES}
    if name is not None and name not in known:
        raise ValueError(f'family must be one of {sorted(known)}; got {name!r}.')
    families = known.values() if name is None else [known[name]]
    fitting = [family for family in families if family.prefix(keys) is not None]
    if not fitting:
        raise ValueError(
            f'The keys are not those of {" or ".join(f.name for f in families)}; they '
            f'begin with {list(keys)[:3]}.'
        )
    return fitting[0]


def find_model(
    weights: Mapping[str, Tensor], family: Family | Detector, backbone_only: bool
) -> dict[str, Tensor]:
    """Take the family's model out of a state dict, without prefix.

    Args:
        weights: The state dict.
        family: Its family.
        backbone_only: Leave out what is not the backbone.

    Returns:
        The weights of the backbone, and of the classifier's head if there is one; all
        of those of a detector.

    Raises:
        ValueError: There is more than that or a segmentor's heads, and it is not to be
            left out.
    """
    prefix = family.prefix(weights)
    others = [key for key in weights if not key.startswith(prefix)]
    if not isinstance(family, Detector) and find_heads(weights, family):
        root = prefix.removesuffix(BACKBONE)
        others = [key for key in others if not key.startswith(root)]
    # What a pretraining method has beside its encoder is of no use afterwards.
    if others and not backbone_only and not prefix.endswith('encoder.'):
        raise ValueError(
            f'Beside what begins with {prefix!r} the checkpoint holds what is not '
            f'converted: {listed(others)}. backbone_only leaves it out.'
        )
    model = _below(weights, prefix)
    if not backbone_only or isinstance(family, Detector):
        return model
    head = f'{family.head}.'
    return {key: value for key, value in model.items() if not key.startswith(head)}


def find_heads(weights: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Take what a segmentor has around its backbone out of a state dict.

    Args:
        weights: The state dict.
        family: Its family.

    Returns:
        All that stands beside the backbone, by the names of mmsegmentation; nothing
        if the model is no segmentor.
    """
    prefix = family.prefix(weights)
    if not prefix.endswith(BACKBONE):
        return {}
    beside = {k: x for k, x in weights.items() if not k.startswith(prefix)}
    heads = _below(beside, prefix.removesuffix(BACKBONE))
    return heads if any(name.startswith('decode_head.') for name in heads) else {}


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
