"""Convert an official checkpoint to the state dict of mmpretrain, mmdet or mmseg."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmsparse.checkpoint.state_dict import (
    Mismatch,
    find_state_dict,
    join_keys,
    state_dict_mismatch,
    strip_prefix,
)
from mmsparse.conversion.detectors import ClassIds, Detector
from mmsparse.conversion.families import BACKBONE, DETECTORS, FAMILIES, Arch, Family
from mmsparse.conversion.relatives import find_relative
from mmsparse.conversion.segmentors import convert_heads


def convert_official(
    state_dict: Mapping[str, Any],
    family: str | None = None,
    arch: Arch | None = None,
    backbone_only: bool = False,
    class_ids: ClassIds = None,
) -> dict[str, Tensor]:
    """Convert official weights to those of a model of mmpretrain, mmdet or mmseg.

    Args:
        state_dict: Official state dict of a classifier, dense backbone, detector or
            segmentor; or a checkpoint with one under ``state_dict`` or ``model``, of
            which the rest is dropped, for example ``model_ema``.
        family: Name of the family; None recognizes it from the keys.
        arch: Name of the arch, or a dict as the backbone takes it; None recognizes it
            from keys and shapes. Detectors have none.
        backbone_only: Drop the head of a classifier, or all but the backbone of a
            detector or segmentor.
        class_ids: For DETR, category ids that are classes, in the order of the classes
            of mmdet's data set, or 'all' rows of the checkpoint, for scores that equal
            the official ones; None takes COCO's classes if the ids are COCO's, else all
            rows. The row of no object is kept, too.

    Returns:
        ``backbone.*``, and for a classifier ``head.fc.*``, as in mmpretrain's
        ``ImageClassifier`` with ``GlobalAveragePooling`` and ``LinearClsHead``. For a
        detector the state dict of mmdet's model of the same name with biases in its
        neck; for a segmentor that of mmseg's ``EncoderDecoder``, with ``neck.*``,
        ``decode_head.*`` and ``auxiliary_head.*``.

    Raises:
        ValueError: The family or arch is unknown or not recognized, or keys are
            missing, unexpected or of another size; the message lists them.
    """
    return convert(state_dict, family, arch, backbone_only, class_ids).state_dict


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint."""

    family: str
    arch: Arch  # for a detector, a description of the model
    state_dict: dict[str, Tensor]
    note: str = ''  # settings of the config that the weights need


def convert(
    checkpoint: Mapping[str, Any],
    family: str | None = None,
    arch: Arch | None = None,
    backbone_only: bool = False,
    class_ids: ClassIds = None,
) -> Conversion:
    """Like :func:`convert_official`, but return the family and arch as well."""
    everything = find_state_dict(checkpoint)
    chosen = _find_family(everything, family, backbone_only)
    if class_ids is not None and not getattr(chosen, 'select_classes', None):
        raise ValueError(
            f'class_ids must be None for a {chosen.name} checkpoint; got {class_ids!r}.'
        )
    weights = _find_model(everything, chosen, backbone_only)
    if isinstance(chosen, Detector):
        if arch is not None:
            raise ValueError(
                f'arch must be None for a {chosen.name} checkpoint, whose keys '
                f'determine the model; got {arch!r}.'
            )
        found, converted = chosen.convert(weights, backbone_only, class_ids)
        return Conversion(chosen.name, found, converted, chosen.note)
    names = _rename(weights, chosen)
    converted = {
        key: chosen.convert_tensor(name, weights[name]) for key, name in names.items()
    }
    archs = _candidates(chosen, arch, weights, checkpoint)
    mismatches = []
    for candidate in archs:
        mismatches.append(_compare(candidate, converted, names, chosen))
        if not mismatches[-1]:
            heads = {} if backbone_only else _find_heads(everything, chosen)
            if heads:
                converted |= convert_heads(heads, chosen.widths(candidate))
            return Conversion(chosen.name, candidate, converted)
    closest = min(range(len(archs)), key=lambda i: len(mismatches[i]))
    raise ValueError(
        f'The checkpoint does not fit {chosen.name}, arch {archs[closest]!r}'
        f'{", the closest of all" if len(archs) > 1 else ""}: {mismatches[closest]}.'
    )


def _find_family(
    keys: Collection[str], name: str | None, backbone_only: bool
) -> Family | Detector:
    """Return the family of this name, or the one that the keys belong to.

    Relatives of detectors are refused, but for their backbones.
    """
    known: dict[str, Family | Detector] = {**DETECTORS, **FAMILIES}
    if name is not None and name not in known:
        raise ValueError(f'family must be one of {sorted(known)}; got {name!r}.')
    families = known.values() if name is None else [known[name]]
    fitting = [family for family in families if family.prefix(keys) is not None]
    relative = find_relative(keys)
    if relative is not None and not (fitting and backbone_only):
        raise ValueError(f'The file is {relative}.')
    if not fitting:
        raise ValueError(
            f'The keys are not those of {" or ".join(f.name for f in families)}; they '
            f'begin with {list(keys)[:3]}.'
        )
    return fitting[0]


def _find_model(
    weights: Mapping[str, Tensor], family: Family | Detector, backbone_only: bool
) -> dict[str, Tensor]:
    """Select the weights of a detector, or of a backbone and the classifier's head.

    Raises:
        ValueError: There are other weights than these and the heads of a segmentor.
    """
    prefix = family.prefix(weights)
    others = [key for key in weights if not key.startswith(prefix)]
    if not isinstance(family, Detector) and _find_heads(weights, family):
        root = prefix.removesuffix(BACKBONE)
        others = [key for key in others if not key.startswith(root)]
    # Pretraining methods have an encoder, and other parts of no further use.
    if others and not backbone_only and not prefix.endswith('encoder.'):
        raise ValueError(
            f'The checkpoint has keys without the prefix {prefix!r}, which are not '
            f'converted: {join_keys(others)}. backbone_only drops them.'
        )
    model = strip_prefix(weights, prefix)
    if not backbone_only or isinstance(family, Detector):
        return model
    head = f'{family.head}.'
    return {key: value for key, value in model.items() if not key.startswith(head)}


def _find_heads(weights: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Select neck and heads of a segmentor; return {} for other models."""
    prefix = family.prefix(weights)
    if not prefix.endswith(BACKBONE):
        return {}
    others = {k: x for k, x in weights.items() if not k.startswith(prefix)}
    heads = strip_prefix(others, prefix.removesuffix(BACKBONE))
    return heads if any(name.startswith('decode_head.') for name in heads) else {}


def _rename(keys: Collection[str], family: Family) -> dict[str, str]:
    """Return the official key of every converted key."""
    names: dict[str, str] = {}
    for official in keys:
        key = family.rename(official)
        if key in names:
            raise ValueError(
                f'{names[key]!r} and {official!r} would both become {key!r}.'
            )
        if key is not None:
            names[key] = official
    return names


def _candidates(
    family: Family, arch: Arch | None, keys: Collection[str], checkpoint: Any
) -> list[Arch]:
    if isinstance(arch, Mapping):
        return [arch]
    known = sorted(family.backbone.arch_settings)
    if arch is None:
        return family.disambiguate(known, keys, checkpoint)
    if arch not in known:
        raise ValueError(f'arch must be one of {known}; got {arch!r}.')
    if not family.disambiguate([arch], keys, checkpoint):
        raise ValueError(
            f'arch={arch!r} does not fit: the keys are those of '
            f'{family.disambiguate(known, keys, checkpoint)}.'
        )
    return [arch]


def _compare(
    arch: Arch,
    converted: Mapping[str, Tensor],
    names: Mapping[str, str],
    family: Family,
) -> Mismatch:
    """Compare converted weights with an arch; report official keys."""
    return state_dict_mismatch(
        converted,
        family.shapes(arch, converted),
        name=lambda key: names.get(key) or family.official(key, arch),
    )
