# A small ATSS on digits, which have 17 to 63 pixels, with a schedule of minutes on two
# CPU cores.
_base_ = ['./atss_small.py', './digits_detection.py']

model = dict(bbox_head=dict(num_classes=10))
train_dataloader = dict(**_base_.digits_train_dataloader)
train_dataloader.update(batch_size=8)
val_dataloader = {{_base_.digits_val_dataloader}}
test_dataloader = {{_base_.digits_val_dataloader}}
val_evaluator = {{_base_.digits_evaluator}}
test_evaluator = {{_base_.digits_evaluator}}
train_cfg = dict(max_epochs=6, val_interval=6)
