_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../../../configs/_base_/mmsparse.py',
    '../../../configs/_base_/backbones/dat-pp-tiny.py',
]

model = dict(
    backbone=dict(
        _base_.dat_pp_tiny,
        _delete_=True,
        drop_path_rate=0.3,  # as mmdet's config of Swin-T
    ),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
