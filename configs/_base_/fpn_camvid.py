# A small Semantic FPN on street scenes, with a schedule for 25 minutes on one CPU core.
_base_ = ['./fpn_small.py', './camvid.py']

model = dict(data_preprocessor=dict(size=(256, 256)), decode_head=dict(num_classes=11))
train_cfg = dict(max_iters=600, val_interval=300)
