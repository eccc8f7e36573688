_base_ = [
    './focus-detr_biformer-nano_1xb4-4e_digits.py',
    '../_base_/backbones/dat-nano.py',
]

model = dict(
    backbone=dict(_base_.dat_nano, _delete_=True, out_indices=(1, 2, 3)),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
