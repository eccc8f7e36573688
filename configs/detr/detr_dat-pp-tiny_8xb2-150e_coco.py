_base_ = [
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/backbones/dat-pp-tiny.py',
]

model = dict(
    backbone=dict(
        _base_.dat_pp_tiny, _delete_=True, out_indices=(3,), drop_path_rate=0.1
    ),
    neck=dict(in_channels=[512]),
)
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
