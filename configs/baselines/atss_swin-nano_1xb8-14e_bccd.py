_base_ = ['../_base_/atss_bccd.py', '../_base_/backbones/swin-nano.py']

model = dict(
    backbone=dict(
        _base_.swin_nano,
        _delete_=True,
        window_size=6,  # feature maps of 96x72, 48x36, 24x18 and 12x9 tokens
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
optim_wrapper = dict(paramwise_cfg=_base_.swin_nano_decay)
