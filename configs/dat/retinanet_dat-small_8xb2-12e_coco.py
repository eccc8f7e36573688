_base_ = './retinanet_dat-tiny_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/dat-small_in1k.pth'),
    ),
)
