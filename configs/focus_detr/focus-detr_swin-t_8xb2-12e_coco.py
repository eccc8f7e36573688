_base_ = ['./focus-detr_r50_8xb2-12e_coco.py', '../_base_/backbones/swin.py']

model = dict(
    backbone=dict(_base_.swin_tiny, _delete_=True),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.swin_norms}}))
