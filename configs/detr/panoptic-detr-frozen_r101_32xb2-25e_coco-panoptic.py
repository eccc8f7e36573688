_base_ = './panoptic-detr-frozen_r50_32xb2-25e_coco-panoptic.py'

model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')),
)
load_from = 'checkpoints/detr_r101_500e_coco-panoptic.pth'
