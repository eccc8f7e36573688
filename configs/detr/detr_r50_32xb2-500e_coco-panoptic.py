# The detector of all segments, stuff included: the first step of the panoptic model.
_base_ = ['../_base_/detr_500e_coco.py', '../_base_/coco_panoptic_segments.py']

model = dict(bbox_head=dict(num_classes=133))
train_dataloader = dict(dataset=_base_.panoptic_train_dataset)
val_dataloader = dict(dataset=_base_.panoptic_val_dataset)
test_dataloader = dict(dataset=_base_.panoptic_val_dataset)
val_evaluator = _base_.boxes_evaluator
test_evaluator = _base_.boxes_evaluator
