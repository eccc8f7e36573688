_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/coco_multiscale.py',
    '../_base_/backbones/dat-tiny.py',
]

model = dict(
    backbone=dict(_base_.dat_tiny_coco, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
optim_wrapper = {{_base_.dat_tiny_coco_optim_wrapper}}
