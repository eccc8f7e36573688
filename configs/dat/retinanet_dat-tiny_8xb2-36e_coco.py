_base_ = './retinanet_dat-tiny_8xb2-12e_coco.py'

train_cfg = dict(max_epochs=36)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_with_boxes}}))
param_scheduler = {{_base_.schedule_3x}}
