# A small ATSS on blood cells, with a schedule for 25 minutes on one CPU core.
_base_ = ['./atss_small.py', './bccd.py']

model = dict(
    data_preprocessor=_base_.bccd_normalization,
    bbox_head=dict(num_classes=3),
)
train_dataloader = dict(**_base_.bccd_train_dataloader)
train_dataloader.update(batch_size=8)
val_dataloader = {{_base_.bccd_val_dataloader}}
test_dataloader = {{_base_.bccd_test_dataloader}}
val_evaluator = {{_base_.bccd_val_evaluator}}
test_evaluator = {{_base_.bccd_test_evaluator}}
train_cfg = dict(max_epochs=14, val_interval=7)
