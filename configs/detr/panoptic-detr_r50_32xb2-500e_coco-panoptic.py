# Detector and mask head trained together.
_base_ = ['../_base_/detr_500e_coco.py', '../_base_/panoptic_detr_coco.py']

model = _base_.panoptic_detr
train_dataloader = dict(dataset=_base_.panoptic_train_dataset)
val_dataloader = dict(dataset=_base_.panoptic_val_dataset)
test_dataloader = dict(dataset=_base_.panoptic_val_dataset)
val_evaluator = _base_.panoptic_evaluator
test_evaluator = _base_.panoptic_evaluator
