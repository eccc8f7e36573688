_base_ = './upernet_dat-pp-tiny_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='pp-small',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
