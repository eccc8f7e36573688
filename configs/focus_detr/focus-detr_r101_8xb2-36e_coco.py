_base_ = './focus-detr_r50_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
    ),
    positional_encoding=dict(offset=0.0, temperature=20),
)
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', milestones=[28, 33], end=36)]
