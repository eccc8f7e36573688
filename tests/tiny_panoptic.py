"""A panoptic DETR small enough to train in a test, and data for it."""

import json

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from PIL import Image
from tiny_detectors import Pyramid, build_model, make_images

THINGS, STUFF = ('cat', 'dog'), ('grass', 'sky')
CATEGORIES = [
    dict(id=10 * (i + 1), name=name, isthing=int(name in THINGS))
    for i, name in enumerate((*THINGS, *STUFF))
]
METAINFO = dict(
    classes=(*THINGS, *STUFF),
    thing_classes=THINGS,
    stuff_classes=STUFF,
    palette=[(220, 20, 60), (0, 0, 142), (0, 228, 0), (70, 130, 180)],
)


class FourMaps(Pyramid):
    """A minimal backbone with feature maps of strides 8 to 64."""

    out_indices = (0, 1, 2, 3)

    def __init__(self):
        super().__init__(levels=4)


def panoptic_config(**changes):
    """The config of a tiny panoptic DETR."""
    attention = dict(embed_dims=128, num_heads=8, dropout=0.0)
    ffn = dict(embed_dims=128, feedforward_channels=16, ffn_drop=0.0)
    layer = dict(self_attn_cfg=attention, ffn_cfg=ffn)
    costs = [
        dict(type='ClassificationCost', weight=1.0),
        dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    config = dict(
        type='mmsparse.PanopticDETR',
        num_queries=6,
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(type=FourMaps),
        neck=dict(
            type='ChannelMapper',
            in_channels=[4],
            out_channels=128,
            kernel_size=1,
            act_cfg=None,
            num_outs=1,
        ),
        encoder=dict(num_layers=1, layer_cfg=layer),
        decoder=dict(num_layers=2, layer_cfg=dict(layer, cross_attn_cfg=attention)),
        positional_encoding=dict(num_feats=64, normalize=True),
        bbox_head=dict(
            type='DETRHead',
            num_classes=4,
            embed_dims=128,
            loss_cls=dict(type='CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        mask_head=dict(
            type='mmsparse.DETRPanopticHead', embed_dims=128, feat_channels=(4, 4, 4)
        ),
        panoptic_fusion_head=dict(
            type='mmsparse.DETRPanopticFusionHead',
            num_things_classes=2,
            num_stuff_classes=2,
        ),
        train_cfg=dict(assigner=dict(type='HungarianAssigner', match_costs=costs)),
        test_cfg=dict(object_mask_thr=0.0),
    )
    return {**config, **changes}


def build_panoptic(**changes):
    """Build a tiny panoptic DETR with seeded random weights."""
    return build_model(panoptic_config(**changes), std=0.1)


def make_segments(sizes, objects=2, **settings):
    """Draw images of given sizes, padded to one canvas, and samples with masks."""
    inputs, samples = make_images(sizes, objects, classes=4, **settings)
    for sample in samples:
        truth, (height, width) = sample.gt_instances, sample.img_shape
        masks = np.zeros((len(truth), height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, truth.bboxes.int(), strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        truth.masks = BitmapMasks(masks, height, width)
    return inputs, samples


def write_panoptic_data(root, images=2, size=(48, 64)):
    """Write images with a cat, two dogs, grass and sky in COCO's panoptic format."""
    (root / 'images').mkdir(parents=True)
    (root / 'segments').mkdir()
    generator = torch.Generator().manual_seed(0)
    infos, annotations = [], []
    for i in range(1, images + 1):
        ids = np.full(size, 300)  # sky
        ids[size[0] // 2 :] = 70000  # grass
        corners = torch.randint(0, 20, (3, 2), generator=generator).tolist()
        for j, (y, x) in enumerate(corners):
            ids[y + 4 * j : y + 4 * j + 12, x + 15 * j : x + 15 * j + 10] = j + 1
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1)
        Image.fromarray(colors.astype(np.uint8)).save(root / f'segments/{i}.png')
        Image.fromarray((ids[..., None] * [7, 40, 90] % 255).astype(np.uint8)).save(
            root / f'images/{i}.jpg'
        )
        categories = {1: 10, 2: 20, 3: 20, 70000: 30, 300: 40}
        annotations.append(
            dict(
                image_id=i,
                file_name=f'{i}.png',
                segments_info=[
                    _segment(ids, number, category)
                    for number, category in categories.items()
                ],
            )
        )
        infos.append(dict(id=i, file_name=f'{i}.jpg', height=size[0], width=size[1]))
    content = dict(images=infos, annotations=annotations, categories=CATEGORIES)
    (root / 'panoptic.json').write_text(json.dumps(content))
    return root


def _segment(ids, number, category):
    rows, columns = (ids == number).nonzero()
    x, y = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) - x + 1, int(rows.max()) - y + 1
    return dict(
        id=number,
        category_id=category,
        iscrowd=0,
        area=len(rows),
        bbox=[x, y, width, height],
    )


def panoptic_dataset(root, **settings):
    """The config of the data set written there."""
    return dict(
        type='CocoPanopticDataset',
        metainfo=METAINFO,
        data_root=str(root),
        ann_file='panoptic.json',
        data_prefix=dict(img='images/', seg='segments/'),
        **settings,
    )
