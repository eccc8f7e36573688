# A small two-stage Deformable DETR on blood cells, with a schedule for 25 minutes on
# one CPU core.
_base_ = ['./deformable_detr_small.py', './bccd.py']

model = dict(
    data_preprocessor=_base_.bccd_normalization,
    num_queries=60,  # an image has at most 30 cells
    bbox_head=dict(num_classes=3),
    test_cfg=dict(max_per_img=60),
)
train_dataloader = {{_base_.bccd_train_dataloader}}
val_dataloader = {{_base_.bccd_val_dataloader}}
test_dataloader = {{_base_.bccd_test_dataloader}}
val_evaluator = {{_base_.bccd_val_evaluator}}
test_evaluator = {{_base_.bccd_test_evaluator}}
train_cfg = dict(max_epochs=5, val_interval=5)
