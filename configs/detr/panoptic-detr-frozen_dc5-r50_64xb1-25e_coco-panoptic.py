_base_ = './panoptic-detr-frozen_r50_32xb2-25e_coco-panoptic.py'

model = dict(backbone=dict(type='mmsparse.DC5ResNet'))
train_dataloader = dict(batch_size=1)
load_from = 'checkpoints/detr_dc5-r50_500e_coco-panoptic.pth'
