"""Building what cases of Focus-DETR need."""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmsparse.checkpoint.state_dict import load_state_dict
from mmsparse.conversion.focus_detr import rename
from mmsparse.models.detectors import FocusDETR, FocusDETRHead
from parity.cases import Case

Arguments = Mapping[str, Any]


def build_detector(arguments: Arguments) -> FocusDETR:
    """Build a detector, its backbone a stub.

    Args:
        arguments: Those of the case.

    Returns:
        The detector, to be evaluated.
    """
    width, levels = arguments['embed_dim'], arguments['num_feature_levels']
    positions = arguments['position_embedding']
    sizes = dict(embed_dims=width, num_heads=arguments['num_heads'], dropout=0.0)
    maps = dict(sizes, num_levels=levels, num_points=arguments['num_points'])
    ffn = dict(
        embed_dims=width,
        feedforward_channels=arguments['feedforward_dim'],
        ffn_drop=0.0,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = FocusDETR(
            keep_ratio=arguments['focus_rho'],
            cascade=arguments['cascade_set'][: arguments['enc_layers']],
            num_object_tokens=arguments['topk_sa'],
            num_queries=arguments['num_queries'],
            num_feature_levels=levels,
            with_box_refine=True,
            as_two_stage=True,
            backbone=dict(type=nn.Identity),
            neck=_neck(arguments),
            encoder=dict(
                num_layers=arguments['enc_layers'],
                layer_cfg=dict(self_attn_cfg=maps, ffn_cfg=ffn),
            ),
            decoder=dict(
                num_layers=arguments['dec_layers'],
                layer_cfg=dict(self_attn_cfg=sizes, cross_attn_cfg=maps, ffn_cfg=ffn),
                post_norm_cfg=None,
            ),
            positional_encoding=dict(
                num_feats=positions['num_pos_feats'],
                temperature=positions['temperature'],
                normalize=positions['normalize'],
                offset=positions['offset'],
            ),
            bbox_head=dict(
                type='mmsparse.FocusDETRHead',
                num_classes=arguments['num_classes'],
                embed_dims=width,
                loss_cls=dict(type='FocalLoss', use_sigmoid=True),
                loss_foreground=dict(strides=[8 * 2**i for i in range(levels)]),
            ),
            dn_cfg=dict(group_cfg=dict(num_dn_queries=1)),
            test_cfg=dict(max_per_img=arguments['select']),
        )
    return detector.eval()


def build_head(arguments: Arguments) -> FocusDETRHead:
    """Build a head with its losses.

    Args:
        arguments: Those of the case.

    Returns:
        The head.
    """
    weights, costs = arguments['weights'], arguments['matcher']
    focal = {name: arguments['focal'][name] for name in ('alpha', 'gamma')}
    cost = dict(
        type='FocalLossCost',
        weight=costs['cost_class'],
        alpha=costs['alpha'],
        gamma=costs['gamma'],
    )
    assigner = dict(
        type='HungarianAssigner',
        match_costs=[
            cost,
            dict(type='BBoxL1Cost', weight=costs['cost_bbox'], box_format='xywh'),
            dict(type='IoUCost', iou_mode='giou', weight=costs['cost_giou']),
        ],
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return FocusDETRHead(
            num_classes=arguments['num_classes'],
            embed_dims=8,  # its weights have no part in this
            loss_cls=dict(
                type='FocalLoss',
                use_sigmoid=True,
                loss_weight=weights['loss_class'],
                **focal,
            ),
            loss_bbox=dict(type='L1Loss', loss_weight=weights['loss_bbox']),
            loss_iou=dict(type='GIoULoss', loss_weight=weights['loss_giou']),
            loss_foreground=dict(
                strides=arguments['strides'],
                size_ranges=arguments['limit_range'],
                loss_weight=weights['select_loss'],
                **focal,
            ),
            train_cfg=dict(assigner=assigner),
        )


def load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    prefix: str = '',
    partial: bool = False,
) -> None:
    """Load official weights.

    Args:
        module: Our module.
        state: The official state dict of the whole.
        prefix: Where the module is in the whole, by our names.
        partial: Whether weights of the module may be missing.

    Raises:
        ValueError: Weights are missing, or left over.
    """
    renamed = {key.removeprefix(prefix): x for key, x in rename(state).items()}
    if partial:
        renamed = module.state_dict() | renamed
    if mismatch := load_state_dict(module, renamed):
        raise ValueError(str(mismatch))


def samples(arguments: Arguments) -> list[BaseDataElement]:
    """Describe the pictures of a case.

    Args:
        arguments: Those of the case.

    Returns:
        One sample a picture.
    """
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


def level_sizes(case: Case) -> tuple[tuple[int, int], ...]:
    """Read the sizes of the levels of a case.

    Args:
        case: The case.

    Returns:
        Height and width of every level.
    """
    given = case.with_prefix('in.')
    sizes = given.get('level_shapes', given.get('spatial_shapes'))
    return tuple((int(height), int(width)) for height, width in sizes)


def _neck(arguments: Arguments) -> dict[str, Any] | None:
    if 'neck' not in arguments:
        return None
    neck = arguments['neck']
    return dict(
        type='ChannelMapper',
        in_channels=list(neck['in_channels']),
        out_channels=arguments['embed_dim'],
        kernel_size=neck['kernel_size'],
        bias=neck['conv_bias'],
        norm_cfg=dict(type='GN', num_groups=neck['groups']),
        act_cfg=None,
        num_outs=arguments['num_feature_levels'],
    )
