# A small two-stage Deformable DETR on blood cells, with a schedule for 25 minutes on
# one CPU core.
_base_ = ['./deformable_detr_small.py', './detr_bccd.py']

model = dict(_base_.bccd_detr)
train_dataloader = {{_base_.bccd_train_dataloader}}
val_dataloader = {{_base_.bccd_val_dataloader}}
test_dataloader = {{_base_.bccd_test_dataloader}}
val_evaluator = {{_base_.bccd_val_evaluator}}
test_evaluator = {{_base_.bccd_test_evaluator}}
train_cfg = dict(max_epochs=5, val_interval=5)
