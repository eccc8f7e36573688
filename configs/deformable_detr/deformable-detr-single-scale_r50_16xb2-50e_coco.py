# One feature map of stride 32: the paper's comparison with DETR.
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '../_base_/mmsparse.py',
]

model = dict(
    num_feature_levels=1,
    backbone=dict(out_indices=(3,)),
    # With a bias, as the official model, so that its weights can be converted.
    neck=dict(in_channels=[2048], num_outs=1, bias=True),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=1))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=1))),
)
