_base_ = ['../_base_/deformable_detr_digits.py', '../_base_/backbones/biformer-nano.py']

model = dict(
    # Learned queries alone, as in DETR.
    as_two_stage=False,
    with_box_refine=False,
    backbone=dict(
        _base_.biformer_nano, _delete_=True, regions_per_side=4, out_indices=(1, 2, 3)
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
# Evaluated in every epoch, to see how fast it converges.
train_cfg = dict(val_interval=1)
