# A small Focus-DETR on blood cells, with a schedule for 25 minutes on one CPU core.
_base_ = ['./focus_detr_small.py', './detr_bccd.py']

model = dict(
    _base_.bccd_detr,
    num_object_tokens=100,  # of 2268 tokens in total
    dn_cfg=dict(group_cfg=dict(num_dn_queries=60)),
)
train_dataloader = {{_base_.bccd_train_dataloader}}
val_dataloader = {{_base_.bccd_val_dataloader}}
test_dataloader = {{_base_.bccd_test_dataloader}}
val_evaluator = {{_base_.bccd_val_evaluator}}
test_evaluator = {{_base_.bccd_test_evaluator}}
train_cfg = dict(max_epochs=8, val_interval=4)
