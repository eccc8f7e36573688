# PVTv2 of mmdet: B0 as published, and with the channels and depths of the nano
# backbones. Without pretrained weights.
pvt_v2_b0 = dict(
    type='mmdet.PyramidVisionTransformerV2',
    embed_dims=32,  # times the heads of a stage
    num_layers=[2, 2, 2, 2],
    num_heads=[1, 2, 5, 8],
    drop_path_rate=0.0,
    out_indices=(0, 1, 2, 3),
)
pvt_v2_nano = dict(
    pvt_v2_b0,
    num_layers=[2, 2, 2, 1],
    num_heads=[1, 2, 4, 8],
    mlp_ratios=(4, 4, 3, 3),
)
