"""Layouts of the official DETR and of its panoptic model."""

from collections.abc import Sequence
from dataclasses import replace

from mmsparse.checkpoint.state_dict import strip_prefix
from mmsparse.conversion.deformable_detr import CLASS_ROWS, ENCODER, FEED_FORWARD
from mmsparse.conversion.detectors import ClassIds, Detector
from mmsparse.conversion.layout import (
    Entry,
    Weights,
    affine,
    below,
    size,
    transformer_layers,
)

# The official models have a row for every category id up to the largest and one for no
# object, mmdet a row for every class and one for no object. Ids of stuff, without those
# that COCO's panoptic annotations merge into others:
STUFF_ROWS = [
    *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144),
    *(145, 147, 148, 149, 151, 154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177),
    *(178, 180, 181, *range(184, 201)),
]
PUBLISHED = {91: CLASS_ROWS, 250: [*CLASS_ROWS, *STUFF_ROWS]}  # by number of ids

PANOPTIC = 'detr.'  # prefix of the detector in a panoptic model
# Modules of mmdet's layers, and their official names.
DENSE_ENCODER = {
    'self_attn.attn': 'self_attn',
    **{key: name for key, name in ENCODER.items() if key != 'self_attn'},
}
DENSE_DECODER = {
    'self_attn.attn': 'self_attn',
    'norms.0': 'norm1',
    'cross_attn.attn': 'multihead_attn',
    'norms.1': 'norm2',
    **FEED_FORWARD,
    'norms.2': 'norm3',
}


def _widths(weights: Weights) -> list[int]:
    return [size(weights, r'input_proj\.weight', axis=1)]


def _layout(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = size(weights, r'transformer\..*norm\d?\.(weight|bias)')
    queries = size(weights, r'query_embed\.weight')
    classes = size(weights, r'class_embed\.(weight|bias)')
    neck = (channels, widths[-1], 1, 1)
    boxes = {'reg_ffn.layers.0.0': channels, 'reg_ffn.layers.1': channels, 'fc_reg': 4}
    return [
        *affine('input_proj', 'neck.convs.0.conv', neck),
        *transformer_layers(weights, 'encoder', channels, DENSE_ENCODER),
        *affine('query_embed', 'query_embedding', (queries, channels), bias=False),
        *transformer_layers(weights, 'decoder', channels, DENSE_DECODER),
        *affine('transformer.decoder.norm', 'decoder.post_norm', (channels,)),
        *affine('class_embed', 'bbox_head.fc_cls', (classes, channels)),
        *(
            entry
            for i, (key, out) in enumerate(boxes.items())
            for entry in affine(
                f'bbox_embed.layers.{i}', f'bbox_head.{key}', (out, channels)
            )
        ),
    ]


def _panoptic_widths(weights: Weights) -> list[int]:
    """The mask head adapts the feature maps of all stages but the last."""
    adapters = [
        size(weights, rf'mask_head\.adapter{i}\.weight', axis=1) for i in (3, 2, 1)
    ]
    return adapters + _widths(strip_prefix(weights, PANOPTIC))


def _panoptic_layout(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = size(weights, r'bbox_attention\..*')
    inputs = size(weights, r'mask_head\.lay1\.(weight|bias)')
    network = mask_network(inputs, channels, widths[:-1])
    return [
        *below(PANOPTIC, '', _layout(strip_prefix(weights, PANOPTIC), widths)),
        *(
            entry
            for name in ('q_linear', 'k_linear')
            for entry in affine(
                f'bbox_attention.{name}',
                f'mask_head.attention.{name}',
                (channels, channels),
            )
        ),
        *below('mask_head.', 'mask_head.network.', network),
    ]


def mask_network(inputs: int, channels: int, widths: Sequence[int]) -> list[Entry]:
    """List the network that makes masks.

    ``inputs`` are the channels of its first layer, ``widths`` those of the feature maps
    that are added, fine to coarse.
    """
    layout, outputs = [], [inputs, *(channels // 2**i for i in range(1, 5))]
    for i, width in enumerate(outputs):
        layout += affine(f'lay{i + 1}', f'convs.{i}', (width, inputs, 3, 3))
        layout += affine(f'gn{i + 1}', f'norms.{i}', (width,))
        inputs = width
    for i, width in enumerate(widths[::-1]):
        shape = (outputs[i + 1], width, 1, 1)
        layout += affine(f'adapter{i + 1}', f'adapters.{i}', shape)
    return layout + affine('out_lay', 'out_conv', (1, inputs, 3, 3))


def _select_classes(weights: Weights, class_ids: ClassIds) -> Weights:
    """Keep the rows of some ids, and the last, of no object.

    None keeps the rows of the classes if the ids are those of COCO, else all.
    """
    names = [x for x in weights if x.removeprefix(PANOPTIC).startswith('class_embed.')]
    numbers = {len(weights[name]) for name in names if weights[name].ndim}
    if len(numbers) != 1:
        return weights  # the layout reports it
    no_object = numbers.pop() - 1
    ids = PUBLISHED.get(no_object) if class_ids is None else class_ids
    if ids is None or ids == 'all':
        return weights
    if isinstance(ids, str) or not set(ids) <= set(range(no_object)):
        raise ValueError(
            f"class_ids must be None, 'all' or ids from 0 to {no_object - 1}, of which "
            f'the checkpoint has rows; got {ids!r}.'
        )
    rows = [*ids, no_object]
    return {**weights, **{name: weights[name][rows] for name in names}}


DETR = Detector(
    name='detr',
    markers=(r'transformer\.decoder\.layers\.\d+\.multihead_attn\.',),
    backbone='backbone.0.body.',
    alias_of=lambda key, weights: key,
    widths=_widths,
    variant=lambda weights: 'dense attention',
    layout=_layout,
    select_classes=_select_classes,
    note=(
        'weights of a DC5 model, whose keys and shapes are those of the plain one, '
        "need backbone=dict(type='mmsparse.DC5ResNet')."
    ),
)
DETR_PANOPTIC = replace(
    DETR,
    name='detr_panoptic',
    markers=(rf'detr\.{DETR.markers[0]}',),
    backbone=f'{PANOPTIC}{DETR.backbone}',
    widths=_panoptic_widths,
    variant=lambda weights: 'dense attention and mask head',
    layout=_panoptic_layout,
    note=f'the model is mmsparse.PanopticDETR; {DETR.note}',
)
