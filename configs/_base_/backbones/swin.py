# mmdet's Swin Transformer for DETRs, and which of its parameters do not decay: norms.
swin_release = 'https://github.com/SwinTransformer/storage/releases/download/'
swin_tiny = dict(
    type='SwinTransformer',
    embed_dims=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    drop_path_rate=0.1,
    out_indices=(1, 2, 3),
    with_cp=True,
    convert_weights=True,
    init_cfg=dict(
        type='Pretrained',
        checkpoint=f'{swin_release}v1.0.0/swin_tiny_patch4_window7_224.pth',
    ),
)
swin_base_384 = dict(
    swin_tiny,
    pretrain_img_size=384,
    embed_dims=128,
    depths=[2, 2, 18, 2],
    num_heads=[4, 8, 16, 32],
    window_size=12,
    drop_path_rate=0.2,
    init_cfg=dict(
        type='Pretrained',
        checkpoint=f'{swin_release}v1.0.0/swin_base_patch4_window12_384_22k.pth',
    ),
)
swin_large_384 = dict(
    swin_base_384,
    embed_dims=192,
    num_heads=[6, 12, 24, 48],
    init_cfg=dict(
        type='Pretrained',
        checkpoint=f'{swin_release}v1.0.0/swin_large_patch4_window12_384_22k.pth',
    ),
)
# MMEngine applies only the longest custom key that matches a parameter. These must be
# longer than 'backbone', so they repeat its learning rate.
swin_norms = dict.fromkeys(
    (
        *('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias'),
        *('norm3.weight', 'norm3.bias', 'patch_embed.norm.', 'downsample.norm.'),
    ),
    dict(lr_mult=0.1, decay_mult=0.0),
)
