# A small DINO on digits, with a schedule of minutes on two CPU cores.
_base_ = ['./dino_small.py', './digits_detection.py']

model = dict(
    num_queries=50,  # an image has at most six digits
    bbox_head=dict(num_classes=10),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=30)),
    test_cfg=dict(max_per_img=50),
)
train_dataloader = {{_base_.digits_train_dataloader}}
val_dataloader = {{_base_.digits_val_dataloader}}
test_dataloader = {{_base_.digits_val_dataloader}}
val_evaluator = {{_base_.digits_evaluator}}
test_evaluator = {{_base_.digits_evaluator}}
train_cfg = dict(max_epochs=4, val_interval=4)
