_base_ = ['../_base_/detr_digits.py', '../_base_/backbones/biformer-nano.py']

model = dict(
    # Stride 16, as in DC5: at 32, images of 128x128 pixels would have 4x4 tokens.
    backbone=dict(
        _base_.biformer_nano, _delete_=True, regions_per_side=4, out_indices=(2,)
    ),
    neck=dict(in_channels=[128]),
)
# Evaluated in every epoch, to see how fast it converges.
train_cfg = dict(val_interval=1)
