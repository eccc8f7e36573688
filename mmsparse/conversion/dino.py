"""Layout of detrex's DINO."""

from collections.abc import Sequence

from mmsparse.conversion.detectors import Detector, alias_in_decoder
from mmsparse.conversion.layout import (
    Entry,
    Weights,
    affine,
    count,
    deformable_attention,
    heads,
    neck,
    repeated,
    same,
    self_attention,
    size,
)

ENCODER, DECODER = 'transformer.encoder.layers', 'transformer.decoder.layers'


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
    encoder_layer = _encoder_layer(weights, embed_dims(weights))
    return [
        *repeated(weights, ENCODER, 'encoder.layers', encoder_layer),
        *all_but_encoder(weights, widths),
    ]


def all_but_encoder(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    """List all but the backbone and the encoder."""
    channels = embed_dims(weights)
    levels = _levels(weights)
    classes = size(weights, r'class_embed\.\d+\.(weight|bias)')
    num_decoders = count(weights, rf'{DECODER}\.(\d+)\.')
    decoder_layer = _decoder_layer(weights, channels)
    return [
        *neck(levels, widths, channels),
        Entry('transformer.level_embeds', 'level_embed', (len(levels), channels)),
        *_two_stages(weights, channels),
        *repeated(weights, DECODER, 'decoder.layers', decoder_layer),
        *_decoder_ends(channels),
        Entry(
            'label_enc.weight',
            'dn_query_generator.label_embedding.weight',
            (classes, channels),
        ),
        *heads(classes, channels, [same] * (num_decoders + 1)),
    ]


def embed_dims(weights: Weights) -> int:
    """Return the width of the transformer."""
    return size(weights, r'transformer\..*\.norms\.\d\.weight')


def feed_forward(weights: Weights, channels: int) -> list[Entry]:
    """List the MLP of a layer of the encoder or decoder."""
    hidden = size(weights, r'transformer\..*\.ffns\.0\.layers\.0\.0\.(weight|bias)')
    return [
        *affine('ffns.0.layers.0.0', 'ffn.layers.0.0', (hidden, channels)),
        *affine('ffns.0.layers.1', 'ffn.layers.1', (channels, hidden)),
    ]


def _levels(weights: Weights) -> list[tuple[str, str]]:
    return [
        (f'neck.{part}.{i}.conv', f'neck.{part}.{i}.norm')
        for part in ('convs', 'extra_convs')
        for i in range(count(weights, rf'neck\.{part}\.(\d+)\.'))
    ]


def _encoder_layer(weights: Weights, channels: int) -> list[Entry]:
    points = size(weights, r'.*\.encoder\..*\.attention_weights\.(weight|bias)')
    return [
        *deformable_attention('attentions.0', 'self_attn', channels, points),
        *affine('norms.0', 'norms.0', (channels,)),
        *feed_forward(weights, channels),
        *affine('norms.1', 'norms.1', (channels,)),
    ]


def _decoder_layer(weights: Weights, channels: int) -> list[Entry]:
    points = size(weights, r'.*\.decoder\..*\.attention_weights\.(weight|bias)')
    return [
        *self_attention('attentions.0.attn', 'self_attn.attn', channels),
        *affine('norms.0', 'norms.0', (channels,)),
        *deformable_attention('attentions.1', 'cross_attn', channels, points),
        *affine('norms.1', 'norms.1', (channels,)),
        *feed_forward(weights, channels),
        *affine('norms.2', 'norms.2', (channels,)),
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
