_base_ = './focus-detr_r50_8xb2-36e_coco.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
    ),
)
param_scheduler = [dict(type='MultiStepLR', milestones=[28, 33], end=36)]
