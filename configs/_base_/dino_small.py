# A small DINO, for images of 128 to 400 pixels on CPUs.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    './mmsparse.py',
    './detr_small.py',
]

model = dict(_base_.small_transformer, neck=dict(num_outs=3))
optim_wrapper = {{_base_.small_optim_wrapper}}
param_scheduler = {{_base_.small_param_scheduler}}
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=4)
