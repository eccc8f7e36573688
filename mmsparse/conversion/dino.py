"""Layout of detrex's DINO."""

from collections.abc import Mapping, Sequence

from mmsparse.conversion.detectors import Detector, alias_in_decoder
from mmsparse.conversion.layout import (
    Entry,
    Weights,
    affine,
    count,
    heads,
    neck,
    num_layers,
    same,
    size,
    transformer_layers,
)

# Modules of mmdet's layers, and their official names.
FEED_FORWARD = {
    'ffn.layers.0.0': 'ffns.0.layers.0.0',
    'ffn.layers.1': 'ffns.0.layers.1',
}
ENCODER = {
    'self_attn': 'attentions.0',
    'norms.0': 'norms.0',
    **FEED_FORWARD,
    'norms.1': 'norms.1',
}
DECODER = {
    'self_attn.attn': 'attentions.0.attn',
    'norms.0': 'norms.0',
    'cross_attn': 'attentions.1',
    'norms.1': 'norms.1',
    **FEED_FORWARD,
    'norms.2': 'norms.2',
}


def _variant(weights: Weights) -> str:
    return f'{len(_levels(weights))} levels'


def _widths(weights: Weights) -> list[int]:
    return [
        size(weights, rf'neck\.convs\.{i}\.conv\.weight', axis=1)
        for i in range(count(weights, r'neck\.convs\.(\d+)\.'))
    ]


def layout(
    weights: Weights, widths: Sequence[int], encoder: Mapping[str, str] = ENCODER
) -> list[Entry]:
    """List all but the backbone, for these widths of its feature maps."""
    channels, levels = embed_dims(weights), _levels(weights)
    points = 'decoder.ref_point_head.layers'
    queries = size(weights, r'transformer\.tgt_embed\.weight')
    classes = size(weights, r'class_embed\.\d+\.(weight|bias)')
    label_embedding = 'dn_query_generator.label_embedding'
    return [
        *neck(levels, widths, channels),
        Entry('transformer.level_embeds', 'level_embed', (len(levels), channels)),
        *transformer_layers(weights, 'encoder', channels, encoder),
        *affine('transformer.enc_output', 'memory_trans_fc', (channels, channels)),
        *affine('transformer.enc_output_norm', 'memory_trans_norm', (channels,)),
        *affine('transformer.tgt_embed', 'query_embedding', (queries, channels), False),
        *affine('label_enc', label_embedding, (classes, channels), False),
        *transformer_layers(weights, 'decoder', channels, DECODER),
        *affine(f'transformer.{points}.0', f'{points}.0', (channels, 2 * channels)),
        *affine(f'transformer.{points}.1', f'{points}.1', (channels, channels)),
        *affine('transformer.decoder.norm', 'decoder.norm', (channels,)),
        *heads(classes, channels, [same] * (num_layers(weights, 'decoder') + 1)),
    ]


def embed_dims(weights: Weights) -> int:
    """Return the width of the transformer."""
    return size(weights, r'transformer\..*\.norms\.\d\.weight')


def _levels(weights: Weights) -> list[tuple[str, str]]:
    return [
        (f'neck.{part}.{i}.conv', f'neck.{part}.{i}.norm')
        for part in ('convs', 'extra_convs')
        for i in range(count(weights, rf'neck\.{part}\.(\d+)\.'))
    ]


DINO = Detector(
    name='dino',
    markers=(r'transformer\.encoder\.layers\.\d+\.attentions\.0\.sampling_offsets\.',),
    backbone='backbone.',
    alias_of=alias_in_decoder,
    widths=_widths,
    variant=_variant,
    layout=layout,
    note=(
        'mmdet needs neck=dict(bias=True), and the temperature and offset of the '
        'training in positional_encoding, which are not in the weights.'
    ),
)
