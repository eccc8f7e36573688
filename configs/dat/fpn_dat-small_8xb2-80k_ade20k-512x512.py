_base_ = './fpn_dat-tiny_8xb2-80k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/dat-small_in1k.pth'),
    ),
)
