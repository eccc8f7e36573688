_base_ = './deformable-detr-single-scale_r50_16xb2-50e_coco.py'

model = dict(backbone=dict(type='mmsparse.DC5ResNet'))
