# A small Focus-DETR, for images of 128 to 400 pixels on CPUs.
_base_ = './dino_small.py'

model = dict(
    type='mmsparse.FocusDETR',
    cascade=(0.8, 0.4),  # times keep_ratio=0.5: 30 % of the tokens
    value_source='current',  # as in the paper: no released weights are loaded
    object_score='prob',
    neck=dict(bias=True),
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(
        type='mmsparse.FocusDETRHead',
        # Overlapping ranges: by the default ones most objects train a single level.
        loss_foreground=dict(
            strides=(8, 16, 32),
            size_ranges=((-1, 64), (32, 128), (64, 256)),
        ),
    ),
)
