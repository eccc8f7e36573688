# No code of the paper's dense tasks was released: the recipe is Swin's, with the
# classifier's stochastic depth.
_base_ = ['../_base_/upernet_ade20k.py', '../_base_/dat_without_decay.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.2,
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dat-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={{_base_.without_decay}}))
