# DETR with ResNet-50 as released: batch size 64, the learning rate drops after 400
# epochs; mmdet's config has 16 and 334.
_base_ = ['mmdet::detr/detr_r50_8xb2-500e_coco.py', './mmsparse.py']

param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=500, by_epoch=True, milestones=[400]),
]
auto_scale_lr = dict(base_batch_size=64)
