_base_ = '../_base_/upernet_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='small',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/shunted-small_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
