_base_ = '../biformer/dino_biformer-nano_1xb4-4e_digits.py'

model = dict(
    type='mmsparse.FocusDETR',
    cascade=(0.8, 0.4),  # times keep_ratio=0.5: 30 % of the tokens
    num_object_tokens=30,  # of 336 tokens in total
    value_source='current',  # as in the paper: no released weights are loaded
    object_score='prob',
    neck=dict(bias=True),
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(
        type='mmsparse.FocusDETRHead',
        # The default ranges assign digits of 17 to 63 pixels to the finest level only.
        loss_foreground=dict(
            strides=(8, 16, 32),
            size_ranges=((-1, 32), (16, 64), (32, 128)),
        ),
    ),
)
