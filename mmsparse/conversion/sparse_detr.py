"""Layout of the official Sparse DETR: that of a two-stage Deformable DETR, and more."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mmsparse.conversion import deformable_detr
from mmsparse.conversion.detectors import alias_in_decoder
from mmsparse.conversion.layout import (
    Entry,
    Weights,
    affine,
    count,
    num_layers,
    size,
)

SCORER = r'transformer\.enc_mask_predictor\.'


def scorer(channels: int) -> list[Entry]:
    """List the token selector, which Focus-DETR has taken over."""
    half, quarter = channels // 2, channels // 4
    shapes = {
        'layer1.0': (channels,),
        'layer1.1': (channels, channels),
        'layer2.0': (half, channels),
        'layer2.2': (quarter, half),
        'layer2.4': (1, quarter),
    }
    official, key = 'transformer.enc_mask_predictor', 'token_selector'
    return [
        entry
        for part, shape in shapes.items()
        for entry in affine(f'{official}.{part}', f'{key}.{part}', shape)
    ]


def _variant(weights: Weights) -> str:
    levels = count(weights, r'input_proj\.(\d+)\.')
    return f'{levels} levels'


def _layout(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = deformable_detr.embed_dims(weights)
    # Content of queries from boxes is not published, but has weights.
    queries = size(weights, r'transformer\.pos_trans\.weight') or channels
    num_heads = count(weights, r'class_embed\.(\d+)\.')
    return deformable_detr.layout(
        weights,
        widths,
        [*deformable_detr.proposals(channels, queries), *scorer(channels)],
        [deformable_detr.CLASS_ROWS] * num_heads,  # all with the true classes
    )


def _alias_of(key: str, weights: Weights) -> str:
    """Heads of encoder layers follow those of the decoder and the one for queries."""
    found = re.match(r'transformer\.encoder\.(class|bbox)_embed\.(\d+)(.*)', key)
    if found is None:
        return alias_in_decoder(key, weights)
    head, layer, rest = found.groups()
    return f'{head}_embed.{num_layers(weights, "decoder") + 1 + int(layer)}{rest}'


SPARSE_DETR = replace(
    deformable_detr.DEFORMABLE_DETR,
    name='sparse_detr',
    markers=(SCORER, *deformable_detr.DEFORMABLE_DETR.markers),
    alias_of=_alias_of,
    variant=_variant,
    layout=_layout,
    note=(
        'mmsparse.SparseDETR needs neck=dict(bias=True), and the keep_ratio of the '
        'training, which is not in the weights.'
    ),
    unused=r'(^|\.)total_(params|ops)$',  # left by a counter of FLOPs
)
