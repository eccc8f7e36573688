_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/mmsparse.py',
]

model = dict(
    type='mmsparse.FocusDETR',
    backbone=dict(frozen_stages=0),  # only the stem
    neck=dict(bias=True),
    # Not parameters: the released weights load with other values, too, but lose AP.
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(type='mmsparse.FocusDETRHead'),
)
# An image without boxes has a large foreground loss.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=True)))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))

# Also report the fraction of boxes of which each encoder layer keeps tokens.
custom_hooks = [*_base_.custom_hooks, dict(type='mmsparse.KeptTokensHook')]
val_evaluator = [{{_base_.val_evaluator}}, dict(type='mmsparse.KeptTokenRecall')]
test_evaluator = val_evaluator
