_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../../../configs/_base_/mmsparse.py',
    '../../../configs/_base_/slow_backbone.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='pp-tiny',
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.3,  # the host's for Swin-T
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dat-pp-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={{_base_.no_decay_in_slow_backbone}})
)
