# A small two-stage Deformable DETR, for images of 128 to 400 pixels on CPUs.
_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    './mmsparse.py',
    './detr_small.py',
]

model = dict(_base_.small_transformer, neck=dict(num_outs=3, bias=True))
optim_wrapper = {{_base_.small_optim_wrapper}}
param_scheduler = {{_base_.small_param_scheduler}}
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=4)
