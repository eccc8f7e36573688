_base_ = './cascade-mask-rcnn_dat-tiny_8xb2-36e_coco.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/dat-small_in1k.pth'),
    ),
)
