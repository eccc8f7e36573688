_base_ = ['../_base_/deformable_detr_bccd.py', '../_base_/backbones/biformer-nano.py']

model = dict(
    type='mmsparse.SparseDETR',
    keep_ratio=0.3,
    backbone=dict(
        _base_.biformer_nano, _delete_=True, regions_per_side=6, out_indices=(1, 2, 3)
    ),
    neck=dict(in_channels=[64, 128, 256]),
    bbox_head=dict(type='mmsparse.SparseDETRHead'),
)

custom_hooks = [*_base_.custom_hooks, dict(type='mmsparse.KeptTokensHook')]
val_evaluator = [{{_base_.bccd_val_evaluator}}, dict(type='mmsparse.KeptTokenRecall')]
test_evaluator = [{{_base_.bccd_test_evaluator}}, dict(type='mmsparse.KeptTokenRecall')]
