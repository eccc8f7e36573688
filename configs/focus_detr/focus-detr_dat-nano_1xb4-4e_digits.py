_base_ = './focus-detr_biformer-nano_1xb4-4e_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='nano',
        out_indices=(1, 2, 3),
        out_norm='layer',
        # As in the classifier.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    )
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
