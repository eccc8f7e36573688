_base_ = './panoptic-detr_r50_32xb2-500e_coco-panoptic.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')),
)
