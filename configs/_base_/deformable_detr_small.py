# A small two-stage Deformable DETR: settings and schedule of dino_small.py.
_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    './mmsparse.py',
]

model = dict(
    num_feature_levels=3,  # a fourth would have a few cells
    neck=dict(num_outs=3, bias=True),
    # Two layers instead of six, half of the feedforward channels.
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
