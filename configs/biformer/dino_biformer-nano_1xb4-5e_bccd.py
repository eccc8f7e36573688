_base_ = ['../_base_/dino_bccd.py', '../_base_/backbones/biformer-nano.py']

model = dict(
    backbone=dict(
        _base_.biformer_nano, _delete_=True, regions_per_side=6, out_indices=(1, 2, 3)
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
