# A small Focus-DETR on blood cells, with a schedule for 25 minutes on one CPU core.
_base_ = ['./dino_small.py', './bccd.py']

model = dict(
    type='mmsparse.FocusDETR',
    num_queries=60,  # an image has at most 30 cells
    cascade=(0.8, 0.4),  # times keep_ratio=0.5: 30 % of the tokens
    num_object_tokens=100,  # of 2268 tokens in total
    value_source='current',  # as in the paper: no released weights are loaded
    object_score='prob',
    neck=dict(bias=True),
    positional_encoding=dict(offset=-0.5, temperature=10000),
    bbox_head=dict(
        type='mmsparse.FocusDETRHead',
        num_classes=3,
        # Overlapping ranges: by the default ones most cells train a single level.
        loss_foreground=dict(
            strides=(8, 16, 32),
            size_ranges=((-1, 64), (32, 128), (64, 256)),
        ),
    ),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=60)),
    test_cfg=dict(max_per_img=60),
)
train_dataloader = {{_base_.bccd_train_dataloader}}
val_dataloader = {{_base_.bccd_val_dataloader}}
test_dataloader = {{_base_.bccd_test_dataloader}}
val_evaluator = {{_base_.bccd_val_evaluator}}
test_evaluator = {{_base_.bccd_test_evaluator}}
train_cfg = dict(max_epochs=8, val_interval=4)
