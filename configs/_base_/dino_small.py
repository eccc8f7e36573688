# A small DINO, for images of 128 to 400 pixels on CPUs.
_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    './mmsparse.py',
]

model = dict(
    num_feature_levels=3,  # a fourth would have a few cells
    neck=dict(num_outs=3),
    # Two layers instead of six, a quarter of the feedforward channels.
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(num_levels=3),
            ffn_cfg=dict(feedforward_channels=512),
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            cross_attn_cfg=dict(num_levels=3),
            ffn_cfg=dict(feedforward_channels=512),
        ),
    ),
)
# One learning rate for all parameters, higher than for COCO: there are few iterations.
optim_wrapper = dict(
    optimizer=dict(lr=4e-4),
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=4e-6,
    ),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=4)
