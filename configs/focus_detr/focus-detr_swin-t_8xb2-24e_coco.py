_base_ = './focus-detr_swin-t_8xb2-12e_coco.py'

train_cfg = dict(max_epochs=24)
param_scheduler = [dict(type='MultiStepLR', milestones=[20], end=24)]
