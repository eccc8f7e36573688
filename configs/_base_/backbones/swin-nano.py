# Swin Transformer of mmdet and mmseg with the channels and depths of the nano
# backbones, without pretrained weights. A config sets the window so that feature maps
# divide into windows, nearly without padding.
swin_nano = dict(
    type='SwinTransformer',
    embed_dims=32,
    depths=[2, 2, 2, 1],
    num_heads=[1, 2, 4, 8],
    drop_path_rate=0.0,
    out_indices=(0, 1, 2, 3),
)
# As published, the table of relative positions does not decay.
swin_nano_decay = dict(
    custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))
)
