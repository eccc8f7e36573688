_base_ = ['../_base_/upernet_camvid.py', '../_base_/backbones/shunted-nano.py']

model = dict(
    backbone=dict(_base_.shunted_nano, _delete_=True),
)
