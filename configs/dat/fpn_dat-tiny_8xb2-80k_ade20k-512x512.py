# No code of the paper's dense tasks was released: the recipe is PVT's, with the
# classifier's stochastic depth.
_base_ = ['../_base_/fpn_ade20k.py', '../_base_/dat_without_decay.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dat-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.without_decay}}))
