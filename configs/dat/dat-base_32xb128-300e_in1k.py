_base_ = 'dat-tiny_32xb128-300e_in1k.py'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=1024)
)

# The largest model has a longer warm-up, a lower learning rate and tighter clipping.
optim_wrapper = dict(optimizer=dict(lr=4e-4 * 4096 / 512), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1.25e-3, end=50, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6 * 4096 / 512,
        begin=50,
        end=300,
        convert_to_iter_based=True,
    ),
]
