"""Relatives of the official detectors, whose weights are not converted."""

from collections.abc import Collection
from dataclasses import dataclass

from mmsparse.checkpoint.state_dict import find_prefix

SAMPLING = r'transformer\.encoder\.layers\.\d+\.{}\.sampling_offsets\.'
OWN_WEIGHTS = "take mmdet's own weights of {}"


@dataclass(frozen=True)
class Relative:
    """A detector that is recognized by its keys.

    Args:
        name: Name and source.
        way_out: What can be used instead.
        has: Regular expressions of the start of keys that it has.
        lacks: Those of keys that it has not.
    """

    name: str
    way_out: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()

    def fits(self, keys: Collection[str]) -> bool:
        """Return whether the keys are those of this detector."""
        return all(find_prefix(keys, x) is not None for x in self.has) and all(
            find_prefix(keys, x) is None for x in self.lacks
        )

    def __str__(self) -> str:
        return f'a checkpoint of {self.name}, which is not converted; {self.way_out}'


# The first that fits counts.
RELATIVES = (
    Relative(
        'Grounding DINO by IDEA-Research',
        OWN_WEIGHTS.format('grounding_dino_swin-t_finetune_16xb2_1x_coco'),
        has=(r'transformer\.tgt_embed\.', r'bert\.'),
    ),
    Relative(
        'DINO by IDEA-Research',
        OWN_WEIGHTS.format('dino-4scale_r50_8xb2-12e_coco')
        + ", or weights of detrex's DINO, which are converted",
        has=(r'transformer\.tgt_embed\.', SAMPLING.format('self_attn')),
    ),
    Relative(
        'DN-DETR by IDEA-Research',
        'mmdet has no DN-DETR; its DINO extends it: '
        + OWN_WEIGHTS.format('dino-4scale_r50_8xb2-12e_coco'),
        has=(r'refpoint_embed\.', r'label_enc\.'),
    ),
    Relative(
        'DAB-Deformable-DETR by IDEA-Research',
        'mmdet has none; its DINO extends it: '
        + OWN_WEIGHTS.format('dino-4scale_r50_8xb2-12e_coco'),
        has=(r'refpoint_embed\.', SAMPLING.format('self_attn')),
    ),
    Relative(
        'DAB-DETR by IDEA-Research',
        OWN_WEIGHTS.format('dab-detr_r50_8xb2-50e_coco'),
        has=(r'refpoint_embed\.', r'transformer\.decoder\.layers\.\d+\.ca_qcontent_'),
    ),
    Relative(
        'Conditional DETR by Atten4Vis',
        OWN_WEIGHTS.format('conditional-detr_r50_8xb2-50e_coco'),
        has=(r'query_embed\.', r'transformer\.decoder\.layers\.\d+\.ca_qcontent_'),
    ),
    Relative(
        "detrex's Deformable DETR",
        "take the authors' weights, which are converted, or mmdet's own",
        has=(SAMPLING.format(r'attentions\.0'),),
        lacks=(r'label_enc\.', r'transformer\.tgt_embed\.'),
    ),
    Relative(
        'RT-DETR',
        'mmdet has no RT-DETR',
        has=(r'decoder\.dec_score_head\.', r'decoder\.dec_bbox_head\.'),
    ),
)


def find_relative(keys: Collection[str]) -> Relative | None:
    """Return the relative whose keys these are, None for others."""
    return next((relative for relative in RELATIVES if relative.fits(keys)), None)
