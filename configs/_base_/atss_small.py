# A small ATSS, for images of 128 to 400 pixels on CPUs.
_base_ = [
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    './mmsparse.py',
]

model = dict(
    # A quarter of the usual channels, and two convolutions instead of four.
    neck=dict(start_level=0, out_channels=64, add_extra_convs=False, num_outs=3),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
        # Anchors of 24 to 96 pixels.
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=60),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=1e-5,
    ),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
