# A small Semantic FPN on digits, with a schedule of minutes on two CPU cores.
_base_ = ['./fpn_small.py', './digits_segmentation.py']

model = dict(data_preprocessor=dict(size=(128, 128)), decode_head=dict(num_classes=11))
train_cfg = dict(max_iters=1600, val_interval=800)
