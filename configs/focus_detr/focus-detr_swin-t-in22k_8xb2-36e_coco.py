_base_ = './focus-detr_swin-t_8xb2-12e_coco.py'

_weights = 'v1.0.8/swin_tiny_patch4_window7_224_22k.pth'
model = dict(backbone=dict(init_cfg=dict(checkpoint=_base_.swin_release + _weights)))
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', milestones=[30], end=36)]
