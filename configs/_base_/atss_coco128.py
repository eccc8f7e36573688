# A small ATSS on COCO128, with a schedule for 25 minutes on one CPU core. It is for
# trials: 128 photographs are too few to learn 80 classes.
_base_ = ['./atss_small.py', './coco128.py']

model = dict(
    # Five levels of anchors of 24 to 384 pixels.
    neck=dict(add_extra_convs='on_output', num_outs=5),
    bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64, 128])),
)
train_dataloader = dict(**_base_.coco128_train_dataloader)
train_dataloader.update(batch_size=8)
val_dataloader = {{_base_.coco128_val_dataloader}}
test_dataloader = {{_base_.coco128_val_dataloader}}
val_evaluator = {{_base_.coco128_evaluator}}
test_evaluator = {{_base_.coco128_evaluator}}
train_cfg = dict(max_epochs=24, val_interval=12)
