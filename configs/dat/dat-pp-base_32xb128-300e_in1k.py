_base_ = 'dat-tiny_32xb128-300e_in1k.py'

model = dict(
    backbone=dict(arch='pp-base', drop_path_rate=0.7), head=dict(in_channels=1024)
)
