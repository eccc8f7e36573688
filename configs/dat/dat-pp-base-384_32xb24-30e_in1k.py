# Fine-tuning of dat-pp-base on larger images: set its checkpoint as load_from. The
# model interpolates its position bias tables.
_base_ = 'dat-base-384_32xb24-30e_in1k.py'

model = dict(backbone=dict(arch='pp-base', drop_path_rate=0.6))

# The whole image, without a crop.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-5 * 768 / 512))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=2e-7 * 768 / 512,
        end=30,
        convert_to_iter_based=True,
    )
]
