_base_ = ['./focus-detr_r50_8xb2-12e_coco.py', '../_base_/backbones/swin.py']

model = dict(
    backbone=dict(_base_.swin_base_384, _delete_=True),
    neck=dict(in_channels=[256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.swin_norms}}))
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', milestones=[30], end=36)]
