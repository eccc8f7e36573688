_base_ = [
    './focus-detr_biformer-nano_1xb4-4e_digits.py',
    '../_base_/backbones/shunted-nano.py',
]

model = dict(
    backbone=dict(_base_.shunted_nano, _delete_=True, out_indices=(1, 2, 3)),
)
