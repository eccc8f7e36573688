_base_ = ['../_base_/upernet_camvid.py', '../_base_/backbones/biformer-nano.py']

model = dict(
    backbone=dict(_base_.biformer_nano, _delete_=True, regions_per_side=8),
)
