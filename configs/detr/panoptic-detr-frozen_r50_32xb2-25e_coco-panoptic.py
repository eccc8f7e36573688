# The second step, as released: the mask head of a trained detector.
_base_ = './panoptic-detr_r50_32xb2-500e_coco-panoptic.py'

model = dict(freeze_detector=True)
load_from = 'checkpoints/detr_r50_500e_coco-panoptic.pth'
train_cfg = dict(max_epochs=25, val_interval=5)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=25, by_epoch=True, milestones=[15]),
]
