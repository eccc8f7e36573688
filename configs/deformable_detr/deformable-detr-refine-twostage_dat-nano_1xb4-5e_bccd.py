_base_ = '../_base_/deformable_detr_bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='nano',
        out_indices=(1, 2, 3),
        out_norm='layer',
        # As in the other backbones; DAT was released with torch's initialization.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
