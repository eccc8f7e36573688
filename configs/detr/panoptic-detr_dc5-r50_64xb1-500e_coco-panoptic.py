_base_ = './panoptic-detr_r50_32xb2-500e_coco-panoptic.py'

model = dict(backbone=dict(type='mmsparse.DC5ResNet'))
train_dataloader = dict(batch_size=1)
