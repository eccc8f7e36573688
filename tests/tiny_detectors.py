"""Detectors small enough to train in a test, and images for them."""

import copy

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn


class Pyramid(nn.Module):
    """A minimal backbone with feature maps of strides 8, 16, 32 and so on."""

    out_indices = (1, 2, 3)

    def __init__(self, levels=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self.steps = nn.ModuleList(
            nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(levels - 1)
        )

    def forward(self, x):
        outs = [self.stem(x)]
        for step in self.steps:
            outs.append(step(outs[-1].relu()))
        return tuple(outs)


def detector_config(width=16, levels=4, encoder=2, decoder=2, classes=3, **changes):
    heads = dict(embed_dims=width, num_heads=2, dropout=0.0)
    points = dict(heads, num_levels=levels, num_points=2)
    ffn = dict(embed_dims=width, feedforward_channels=24, ffn_drop=0.0)
    costs = [
        dict(type='FocalLossCost', weight=2.0),
        dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    config = dict(
        type='mmsparse.FocusDETR',
        cascade=(1.0, 0.8, 0.6, 0.6, 0.4, 0.2)[:encoder],
        num_object_tokens=6,
        num_queries=10,
        num_feature_levels=levels,
        with_box_refine=True,
        as_two_stage=True,
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type=Pyramid),
        neck=dict(
            type='ChannelMapper',
            in_channels=[4, 4, 4],
            out_channels=width,
            kernel_size=1,
            bias=True,
            act_cfg=None,
            norm_cfg=dict(type='GN', num_groups=4),
            num_outs=levels,
        ),
        encoder=dict(
            num_layers=encoder, layer_cfg=dict(self_attn_cfg=points, ffn_cfg=ffn)
        ),
        decoder=dict(
            num_layers=decoder,
            layer_cfg=dict(self_attn_cfg=heads, cross_attn_cfg=points, ffn_cfg=ffn),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True, offset=-0.5),
        bbox_head=dict(
            type='mmsparse.FocusDETRHead',
            num_classes=classes,
            embed_dims=width,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            loss_foreground=dict(strides=[8 * 2**i for i in range(levels)]),
        ),
        dn_cfg=dict(group_cfg=dict(dynamic=True, num_dn_queries=8)),
        train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=costs)),
        test_cfg=dict(max_per_img=20),
    )
    return copy.deepcopy({**config, **changes})


def sparse_config(keep_ratio=0.3, **changes):
    """Return the config of a Sparse DETR."""
    config = detector_config(**changes)
    for option in ('cascade', 'num_object_tokens', 'dn_cfg'):
        config.pop(option)
    head = dict(config['bbox_head'], sync_cls_avg_factor=True)
    if 'bbox_head' not in changes:
        head['type'] = 'mmsparse.SparseDETRHead'
        head.pop('loss_foreground')
    config.update(type='mmsparse.SparseDETR', keep_ratio=keep_ratio, bbox_head=head)
    return config


def build_detector(**changes):
    """Build a tiny detector with seeded random weights."""
    return build_model(detector_config(**changes))


def build_model(config, std=0.2):
    """Build a model from a config, with seeded random weights."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(config)
    for name, parameter in detector.named_parameters():
        spread = 0.5 if 'sampling_offsets' in name else std
        nn.init.normal_(parameter, mean=float('norm' in name), std=spread)
    return detector


def build_host_detector(name):
    """Build a detector from a config of mmdet, with fewer layers and queries."""
    config = get_config(f'mmdet::{name}').model
    neck = config.get('neck') or config.panoptic_head
    levels = len(neck.in_channels)
    neck.in_channels = [4] * levels
    config.backbone = dict(type=Pyramid, levels=levels)
    config.data_preprocessor.batch_augments = None  # pads to 1024x1024
    _shrink(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(config)
    detector.init_weights()
    return detector


def _shrink(settings):
    for key, value in settings.items():
        if key == 'num_layers':
            settings[key] = 1
        elif key in ('num_queries', 'num_proposals'):
            settings[key] = 20
        elif key == 'train_cfg' and isinstance(value, dict) and 'num_points' in value:
            value['num_points'] = 50
        elif isinstance(value, dict):
            _shrink(value)


def make_images(sizes, boxes=2, canvas=None, classes=3, generator=None):
    """Draw images of given sizes, padded to one canvas, and samples with boxes."""
    if isinstance(boxes, int):
        boxes = [boxes] * len(sizes)
    canvas = canvas or tuple(max(sides) for sides in zip(*sizes, strict=True))
    inputs = torch.zeros(len(sizes), 3, *canvas)
    samples = []
    for x, (height, width), count in zip(inputs, sizes, boxes, strict=True):
        x[:, :height, :width] = torch.randn(3, height, width, generator=generator)
        ends = torch.tensor([width, height])
        corners = torch.rand(count, 2, 2, generator=generator) * ends
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                batch_input_shape=canvas,
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners.amin(1), corners.amax(1)], -1),
            labels=torch.randint(classes, (count,), generator=generator),
        )
        samples.append(sample)
    return inputs, samples
