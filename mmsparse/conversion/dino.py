"""Layout of detrex's DINO."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
from mmsparse.onedl import has_wide_dino, widen_box_encoding

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
BOX_ENCODING = 'decoder.ref_point_head.layers.0.weight'  # in mmdet


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


def _fit_installed(entries: list[Entry]) -> list[Entry]:
    """Widen the encoding of boxes if the installed mmdet is OneDL's."""
    if not has_wide_dino():
        return entries
    return [
        replace(x, convert=widen_box_encoding) if x.key == BOX_ENCODING else x
        for x in entries
    ]


def _layout_of_mmdet(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    """List everything under its own name."""
    channels = weights['memory_trans_norm.weight'].shape[0]
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    shapes[BOX_ENCODING] = (channels, 2 * channels)
    return _fit_installed([Entry(key, key, shape) for key, shape in shapes.items()])


DINO = Detector(
    name='dino',
    markers=(r'transformer\.encoder\.layers\.\d+\.attentions\.0\.sampling_offsets\.',),
    backbone='backbone.',
    alias_of=alias_in_decoder,
    widths=_widths,
    variant=_variant,
    layout=lambda weights, widths: _fit_installed(layout(weights, widths)),
    note=(
        'mmdet needs neck=dict(bias=True), and the temperature and offset of the '
        'training in positional_encoding, which are not in the weights.'
    ),
)

# OpenMMLab's, for OneDL's mmdet. The backbone is part of the layout.
MMDET_DINO = Detector(
    name='mmdet_dino',
    markers=(
        r'decoder\.ref_point_head\.layers\.0\.',
        r'query_embedding\.',
        r'memory_trans_norm\.',
        r'dn_query_generator\.',
    ),
    lacks=r'(token_selector|text_feat_map)\.',  # Focus-DETR, Grounding DINO
    backbone='no backbone',
    alias_of=lambda key, weights: key,
    widths=lambda weights: [],
    variant=lambda weights: "OpenMMLab's",
    layout=_layout_of_mmdet,
    note="The weights fit OneDL's mmdet only.",
)
