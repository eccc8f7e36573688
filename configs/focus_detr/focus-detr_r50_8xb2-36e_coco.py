_base_ = './focus-detr_r50_8xb2-12e_coco.py'

model = dict(positional_encoding=dict(offset=0.0, temperature=20))
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', milestones=[20], end=36)]
