_base_ = ['./focus-detr_r50_8xb2-12e_coco.py', '../_base_/backbones/shunted-small.py']

model = dict(
    backbone=dict(_base_.shunted_small_coco, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
