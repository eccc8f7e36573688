_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/mmsparse.py',
]

model = dict(
    type='mmsparse.FocusDETR',
    backbone=dict(frozen_stages=0),  # the stem alone
    neck=dict(bias=True),
    # Without parameters: other numbers load as well, and cost AP.
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(type='mmsparse.FocusDETRHead'),
)
# A picture without boxes has a large foreground loss.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=True)))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))

# Also report how many of the boxes the encoder layers keep tokens of.
custom_hooks = [*_base_.custom_hooks, dict(type='mmsparse.KeptTokensHook')]
val_evaluator = [{{_base_.val_evaluator}}, dict(type='mmsparse.KeptTokenRecall')]
test_evaluator = val_evaluator
