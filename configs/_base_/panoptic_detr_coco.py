# The panoptic model, its data and metrics: what it adds to a DETR. Use the names below
# as _base_.NAME.
_base_ = './coco_panoptic_segments.py'

panoptic_detr = dict(
    type='mmsparse.PanopticDETR',
    backbone=dict(out_indices=(0, 1, 2, 3)),
    bbox_head=dict(num_classes=133),
    mask_head=dict(type='mmsparse.DETRPanopticHead'),
    panoptic_fusion_head=dict(
        type='mmsparse.DETRPanopticFusionHead',
        num_things_classes=80,
        num_stuff_classes=53,
    ),
)
