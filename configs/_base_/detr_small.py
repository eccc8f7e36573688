# A small encoder and decoder of deformable attention, for images of 128 to 400 pixels
# on CPUs, and their schedule. Use the names below as _base_.NAME.
small_transformer = dict(
    num_feature_levels=3,  # a fourth would have a few cells
    # Two layers instead of six, 512 feedforward channels.
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
small_optim_wrapper = dict(
    optimizer=dict(lr=4e-4),
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0),
)
small_param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=4e-6,
    ),
]
