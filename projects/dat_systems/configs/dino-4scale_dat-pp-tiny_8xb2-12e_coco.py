_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../../../configs/_base_/mmsparse.py',
    '../../../configs/_base_/backbones/dat-pp-tiny.py',
]

model = dict(
    backbone=dict(
        _base_.dat_pp_tiny, _delete_=True, out_indices=(1, 2, 3), drop_path_rate=0.1
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
