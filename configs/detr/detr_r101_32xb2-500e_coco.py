_base_ = './detr_r50_32xb2-500e_coco.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')),
)
