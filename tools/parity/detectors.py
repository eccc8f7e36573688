"""What golden cases of detection transformers share: configs, samples, matching."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from mmsparse.models.detectors.panoptic_detr import match_queries
from parity.cases import Case
from parity.models import Arguments

LOGGED_ONLY = ('class_error', 'cardinality_error')  # without counterpart in mmsparse
Outputs = dict[str, Tensor]  # of mmsparse, by the names of the case
Size = tuple[int, int]  # height and width


def leaves(case: Case, *names: str) -> dict[str, Tensor]:
    """Copy inputs of a case as leaves that get gradients."""
    return {name: case.tensors[f'in.{name}'].clone().requires_grad_() for name in names}


def level_sizes(case: Case) -> tuple[Size, ...]:
    """Return height and width of every level of a case."""
    given = case.with_prefix('in.')
    sizes = given.get('level_shapes', given.get('spatial_shapes'))
    return tuple((int(height), int(width)) for height, width in sizes)


def per_level(name: str, tokens: Tensor, sizes: Sequence[Size]) -> Outputs:
    """Split (B, N, C) into feature maps of all levels, or (B, N) into masks."""
    lengths = [height * width for height, width in sizes]
    levels = zip(tokens.split(lengths, dim=1), sizes, strict=True)
    return {
        f'{name}{i}': x.unflatten(1, size).movedim(3, 1)
        if x.ndim == 3
        else x.unflatten(1, size)
        for i, (x, size) in enumerate(levels)
    }


def order_rows(rows: Tensor, wanted: Tensor) -> Tensor:
    """Return the indices of the wanted tokens among the rows, (B, K)."""
    if not torch.equal(rows.sort(-1).values, wanted.sort(-1).values):
        raise ValueError('The kept tokens differ from the official ones.')
    return rows.argsort(-1).gather(1, wanted.argsort(-1).argsort(-1))


def make_samples(arguments: Arguments) -> list[BaseDataElement]:
    """Return the samples of a batch of images, without boxes."""
    return [
        BaseDataElement(
            metainfo=dict(
                img_shape=tuple(size),
                ori_shape=tuple(size),
                batch_input_shape=tuple(arguments['padded_image']),
                scale_factor=(1.0, 1.0),
            )
        )
        for size in arguments['image_sizes']
    ]


def add_boxes(samples: Sequence[BaseDataElement], given: Mapping[str, Tensor]) -> None:
    """Add ``labels0``, ``boxes0`` and so on, (cx, cy, w, h) from 0 to 1, to samples."""
    for i, sample in enumerate(samples):
        height, width = sample.img_shape
        factors = torch.tensor([width, height, width, height])
        sample.gt_instances = InstanceData(
            bboxes=bbox_cxcywh_to_xyxy(given[f'boxes{i}'] * factors),
            labels=given[f'labels{i}'],
        )


def match(
    head: DETRHead, logits: Tensor, boxes: Tensor, sample: BaseDataElement
) -> Tensor:
    """Return matched queries and their targets, (2, n), by queries."""
    pairs = match_queries(head, logits, boxes, sample.gt_instances, sample.metainfo)
    return torch.stack(pairs)


def encoder_layer_cfg(arguments: Arguments) -> dict[str, Any]:
    """Return the config of an encoder layer."""
    levels = arguments.get('num_levels', arguments.get('num_feature_levels'))
    return dict(
        self_attn_cfg=dict(
            embed_dims=arguments['embed_dim'],
            num_heads=arguments['num_heads'],
            num_levels=levels,
            num_points=arguments['num_points'],
            dropout=0.0,
        ),
        ffn_cfg=dict(
            embed_dims=arguments['embed_dim'],
            feedforward_channels=arguments['feedforward_dim'],
            ffn_drop=0.0,
        ),
    )


def transformer_cfg(arguments: Arguments) -> dict[str, Any]:
    """Return the config of encoder, decoder and position embeddings of a detector."""
    encoder_layer = encoder_layer_cfg(arguments)
    decoder_layer = dict(
        self_attn_cfg=dict(
            embed_dims=arguments['embed_dim'],
            num_heads=arguments['num_heads'],
            dropout=0.0,
        ),
        cross_attn_cfg=encoder_layer['self_attn_cfg'],
        ffn_cfg=encoder_layer['ffn_cfg'],
    )
    positions = arguments['position_embedding']
    return dict(
        num_queries=arguments['num_queries'],
        num_feature_levels=arguments['num_feature_levels'],
        encoder=dict(num_layers=arguments['enc_layers'], layer_cfg=encoder_layer),
        decoder=dict(
            num_layers=arguments['dec_layers'],
            layer_cfg=decoder_layer,
            post_norm_cfg=None,
        ),
        positional_encoding=dict(
            num_feats=positions['num_pos_feats'],
            temperature=positions['temperature'],
            normalize=positions['normalize'],
            offset=positions['offset'],
        ),
    )


def neck_cfg(
    arguments: Arguments, in_channels: Sequence[int], groups: int, bias: bool = True
) -> dict[str, Any]:
    """Return the config of a neck of 1x1 convolutions."""
    return dict(
        type='ChannelMapper',
        in_channels=list(in_channels),
        out_channels=arguments['embed_dim'],
        kernel_size=1,
        bias=bias,
        norm_cfg=dict(type='GN', num_groups=groups),
        act_cfg=None,
        num_outs=arguments['num_feature_levels'],
    )


def assigner_cfg(
    cost_class: float = 2.0,
    cost_bbox: float = 5.0,
    cost_giou: float = 2.0,
    **focal: float,
) -> dict[str, Any]:
    """Return the config of the matching, with weights of its costs."""
    return dict(
        type='HungarianAssigner',
        match_costs=[
            dict(type='FocalLossCost', weight=cost_class, **focal),
            dict(type='BBoxL1Cost', weight=cost_bbox, box_format='xywh'),
            dict(type='IoUCost', iou_mode='giou', weight=cost_giou),
        ],
    )
