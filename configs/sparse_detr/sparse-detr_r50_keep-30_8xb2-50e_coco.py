_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    '../_base_/mmsparse.py',
]

model = dict(
    type='mmsparse.SparseDETR',
    keep_ratio=0.3,
    neck=dict(bias=True),
    bbox_head=dict(type='mmsparse.SparseDETRHead'),
)
auto_scale_lr = dict(base_batch_size=16)  # Deformable DETR: 32, at the same rate

# Also report the fraction of boxes of which the encoder keeps tokens.
custom_hooks = [*_base_.custom_hooks, dict(type='mmsparse.KeptTokensHook')]
val_evaluator = [{{_base_.val_evaluator}}, dict(type='mmsparse.KeptTokenRecall')]
test_evaluator = val_evaluator
