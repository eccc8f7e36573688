_base_ = '../biformer/dino_biformer-nano_1xb4-4e_digits.py'

model = dict(
    type='mmsparse.FocusDETR',
    cascade=(0.8, 0.4),  # times keep_ratio=0.5: 30 % of the tokens
    num_object_tokens=30,  # of 336 in all
    value_source='current',  # no released weights are to be loaded: as the paper has it
    object_score='prob',
    neck=dict(bias=True),
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(
        type='mmsparse.FocusDETRHead',
        # By the default ranges, digits of 17 to 63 pixels are all of the finest level.
        loss_foreground=dict(
            strides=(8, 16, 32),
            size_ranges=((-1, 32), (16, 64), (32, 128)),
        ),
    ),
)
