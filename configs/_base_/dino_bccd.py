# A small DINO on blood cells, with a schedule for 25 minutes on one CPU core.
_base_ = ['./dino_small.py', './detr_bccd.py']

model = dict(_base_.bccd_detr, dn_cfg=dict(group_cfg=dict(num_dn_queries=60)))
train_dataloader = {{_base_.bccd_train_dataloader}}
val_dataloader = {{_base_.bccd_val_dataloader}}
test_dataloader = {{_base_.bccd_test_dataloader}}
val_evaluator = {{_base_.bccd_val_evaluator}}
test_evaluator = {{_base_.bccd_test_evaluator}}
train_cfg = dict(max_epochs=5, val_interval=5)
