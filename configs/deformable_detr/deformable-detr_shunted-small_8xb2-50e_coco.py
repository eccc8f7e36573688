_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/backbones/shunted-small.py',
]

model = dict(
    backbone=dict(_base_.shunted_small_coco, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    optimizer=dict(lr=1e-4),  # mmdet's 2e-4 is for a batch size of 32
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
auto_scale_lr = dict(base_batch_size=16)
