# A small Semantic FPN, for CPUs.
_base_ = [
    './onedl.py',
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
    './mmsparse.py',
]

model = dict(
    pretrained=None,
    # A quarter of the usual channels in the neck and half in the head.
    neck=dict(out_channels=64),
    decode_head=dict(in_channels=[64] * 4, channels=64),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=60),
    dict(type='PolyLR', power=0.9, by_epoch=False),
]
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=400, max_keep_ckpts=2)
)
randomness = dict(seed=0)
