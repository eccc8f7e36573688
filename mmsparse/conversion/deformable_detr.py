"""Layout of the official Deformable DETR."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from mmsparse.conversion.detectors import Detector, alias_in_decoder
from mmsparse.conversion.layout import (
    Entry,
    Weights,
    affine,
    count,
    heads,
    neck,
    num_layers,
    size,
    transformer_layers,
)

# The official model has a row for every category id of COCO, mmdet one per class.
NUM_CATEGORIES = 91
UNUSED_CATEGORIES = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CLASS_ROWS = [i for i in range(NUM_CATEGORIES) if i not in UNUSED_CATEGORIES]
# The head that picks proposals separates objects from background by its first row
# alone, in mmdet too: this row stays the first.
PROPOSAL_ROWS = [0, *CLASS_ROWS[1:]]

# Modules of mmdet's layers, and their official names.
FEED_FORWARD = {'ffn.layers.0.0': 'linear1', 'ffn.layers.1': 'linear2'}
ENCODER = {
    'self_attn': 'self_attn',
    'norms.0': 'norm1',
    **FEED_FORWARD,
    'norms.1': 'norm2',
}
DECODER = {
    'self_attn.attn': 'self_attn',
    'norms.0': 'norm2',  # numbered in another order
    'cross_attn': 'cross_attn',
    'norms.1': 'norm1',
    **FEED_FORWARD,
    'norms.2': 'norm3',
}


def _variant(weights: Weights) -> str:
    if any(name.startswith('transformer.enc_output.') for name in weights):
        return 'two-stage'
    if any(name.startswith('transformer.decoder.bbox_embed.') for name in weights):
        return 'refine'
    return 'plain'


def _widths(weights: Weights) -> list[int]:
    """Return the widths of the backbone's feature maps, which 1x1 convolutions take."""
    projected = [name for name, x in weights.items() if x.shape[2:] == (1, 1)]
    return [
        size(weights, rf'input_proj\.{i}\.0\.weight', axis=1)
        for i in range(count(projected, r'input_proj\.(\d+)\.'))
    ]


def _layout(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = embed_dims(weights)
    two_stage = _variant(weights) == 'two-stage'
    return layout(
        weights,
        widths,
        proposals(channels, 2 * channels)  # position and content
        if two_stage
        else _queries(weights, channels),
        [CLASS_ROWS] * num_layers(weights, 'decoder') + [PROPOSAL_ROWS] * two_stage,
    )


def embed_dims(weights: Weights) -> int:
    """Return the width of the transformer."""
    return size(weights, r'transformer\..*\.norm\d\.weight')


def layout(
    weights: Weights,
    widths: Sequence[int],
    queries: Sequence[Entry],
    rows: Sequence[Sequence[int]],
) -> list[Entry]:
    """List all but the backbone.

    ``widths`` are those of the backbone's feature maps, ``queries`` has what queries
    start from, and ``rows`` the categories that each head has in mmdet.
    """
    channels = embed_dims(weights)
    classes = size(weights, r'class_embed\.\d+\.(weight|bias)')
    levels = count(weights, r'input_proj\.(\d+)\.')
    convs = [(f'input_proj.{i}.0', f'input_proj.{i}.1') for i in range(levels)]
    return [
        *neck(convs, widths, channels),
        Entry('transformer.level_embed', 'level_embed', (levels, channels)),
        *transformer_layers(weights, 'encoder', channels, ENCODER),
        *queries,
        *transformer_layers(weights, 'decoder', channels, DECODER),
        *heads(classes, channels, [partial(_pick, rows=x) for x in rows]),
    ]


def _queries(weights: Weights, channels: int) -> list[Entry]:
    queries = size(weights, r'query_embed\.weight')
    return [
        Entry('query_embed.weight', 'query_embedding.weight', (queries, 2 * channels)),
        *affine('transformer.reference_points', 'reference_points_fc', (2, channels)),
    ]


def proposals(channels: int, outputs: int) -> list[Entry]:
    """List what queries start from in two stages; ``outputs`` channels are computed."""
    return [
        *affine('transformer.enc_output', 'memory_trans_fc', (channels, channels)),
        *affine('transformer.enc_output_norm', 'memory_trans_norm', (channels,)),
        *affine('transformer.pos_trans', 'pos_trans_fc', (outputs, 2 * channels)),
        *affine('transformer.pos_trans_norm', 'pos_trans_norm', (outputs,)),
    ]


def _pick(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    return tensor[rows] if len(tensor) == NUM_CATEGORIES else tensor


DEFORMABLE_DETR = Detector(
    name='deformable_detr',
    markers=(r'transformer\.encoder\.layers\.\d+\.self_attn\.',),
    backbone='backbone.0.body.',
    alias_of=alias_in_decoder,
    widths=_widths,
    variant=_variant,
    layout=_layout,
    note='mmdet needs neck=dict(bias=True).',
)
