"""Layout of detrex's DINO."""

from collections.abc import Sequence

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


def variant(weights: Weights) -> str:
    """Return the name of the variant: its number of levels."""
    return f'{len(_levels(weights))} levels'


def widths(weights: Weights) -> list[int]:
    """Return the widths of the backbone's feature maps that the neck takes."""
    return [
        size(weights, rf'neck\.convs\.{i}\.conv\.weight', axis=1)
        for i in range(count(weights, r'neck\.convs\.(\d+)\.'))
    ]


def layout(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    """List all but the backbone, for these widths of its feature maps."""
    encoder = transformer_layers(weights, 'encoder', embed_dims(weights), ENCODER)
    return [*encoder, *all_but_encoder(weights, widths)]


def all_but_encoder(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    """List all but the backbone and the encoder."""
    channels = embed_dims(weights)
    levels = _levels(weights)
    classes = size(weights, r'class_embed\.\d+\.(weight|bias)')
    return [
        *neck(levels, widths, channels),
        Entry('transformer.level_embeds', 'level_embed', (len(levels), channels)),
        *_two_stages(weights, channels),
        *transformer_layers(weights, 'decoder', channels, DECODER),
        *_decoder_ends(channels),
        Entry(
            'label_enc.weight',
            'dn_query_generator.label_embedding.weight',
            (classes, channels),
        ),
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


def _decoder_ends(channels: int) -> list[Entry]:
    names = 'transformer.decoder.ref_point_head.layers', 'decoder.ref_point_head.layers'
    return [
        *affine(f'{names[0]}.0', f'{names[1]}.0', (channels, 2 * channels)),
        *affine(f'{names[0]}.1', f'{names[1]}.1', (channels, channels)),
        *affine('transformer.decoder.norm', 'decoder.norm', (channels,)),
    ]


def _two_stages(weights: Weights, channels: int) -> list[Entry]:
    queries = size(weights, r'transformer\.tgt_embed\.weight')
    return [
        Entry(
            'transformer.tgt_embed.weight',
            'query_embedding.weight',
            (queries, channels),
        ),
        *affine('transformer.enc_output', 'memory_trans_fc', (channels, channels)),
        *affine('transformer.enc_output_norm', 'memory_trans_norm', (channels,)),
    ]


DINO = Detector(
    name='dino',
    marker=r'transformer\.encoder\.layers\.\d+\.attentions\.0\.sampling_offsets\.',
    backbone='backbone.',
    alias_of=alias_in_decoder,
    widths=widths,
    variant=variant,
    layout=layout,
    note=(
        'mmdet needs neck=dict(bias=True), and the temperature and offset of the '
        'training in positional_encoding, which are not in the weights.'
    ),
)
