_base_ = ['./detr_biformer-small_8xb2-150e_coco.py', '../_base_/panoptic_detr_coco.py']

model = dict(
    _base_.panoptic_detr,
    mask_head=dict(type='mmsparse.DETRPanopticHead', feat_channels=(64, 128, 256)),
)
train_dataloader = dict(dataset=_base_.panoptic_train_dataset)
val_dataloader = dict(dataset=_base_.panoptic_val_dataset)
test_dataloader = dict(dataset=_base_.panoptic_val_dataset)
val_evaluator = _base_.panoptic_evaluator
test_evaluator = _base_.panoptic_evaluator
