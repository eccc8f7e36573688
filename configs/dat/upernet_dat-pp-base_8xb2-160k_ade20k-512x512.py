_base_ = './upernet_dat-pp-tiny_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='pp-base',
        drop_path_rate=0.7,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-base_in1k.pth'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
