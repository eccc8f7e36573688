# A small DETR on digits: settings and schedule of deformable_detr_digits.py.
_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    './mmsparse.py',
    './detr_small.py',
    './digits_detection.py',
]

# Two layers instead of six, 512 feedforward channels.
_transformer = dict(
    num_layers=2, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=512))
)
model = dict(
    num_queries=50,  # an image has at most six digits
    encoder=_transformer,
    decoder=_transformer,
    bbox_head=dict(num_classes=10),
    test_cfg=dict(max_per_img=50),
)
train_dataloader = {{_base_.digits_train_dataloader}}
val_dataloader = {{_base_.digits_val_dataloader}}
test_dataloader = {{_base_.digits_val_dataloader}}
val_evaluator = {{_base_.digits_evaluator}}
test_evaluator = {{_base_.digits_evaluator}}
train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = {{_base_.small_optim_wrapper}}
param_scheduler = {{_base_.small_param_scheduler}}
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=2))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=4)
