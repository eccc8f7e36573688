_base_ = [
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/coco_multiscale.py',
    '../_base_/conv_bbox_heads.py',
    '../_base_/backbones/dat-tiny.py',
]

model = dict(
    backbone=dict(_base_.dat_tiny_coco, _delete_=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
    roi_head=dict(bbox_head={{_base_.conv_bbox_heads}}),
)
optim_wrapper = {{_base_.dat_tiny_coco_optim_wrapper}}
