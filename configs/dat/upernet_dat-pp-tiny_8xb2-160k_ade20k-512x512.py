_base_ = ['../_base_/upernet_ade20k.py', '../_base_/dat_without_decay.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='pp-tiny',
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.3,
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dat-pp-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.without_decay}}))
