_base_ = './retinanet_shunted-small_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/shunted-base_in1k.pth'),
    )
)
