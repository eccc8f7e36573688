_base_ = './detr_r50_32xb2-500e_coco.py'

model = dict(backbone=dict(type='mmsparse.DC5ResNet'))
train_dataloader = dict(batch_size=1)
