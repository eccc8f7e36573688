_base_ = ['../_base_/upernet_ade20k.py', '../_base_/backbones/shunted-small.py']

model = dict(
    backbone=dict(_base_.shunted_small, _delete_=True),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
