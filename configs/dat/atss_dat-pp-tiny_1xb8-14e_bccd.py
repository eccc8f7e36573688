# For a GPU: as many iterations as the nano, which is to take 25 minutes on a CPU core.
_base_ = './atss_dat-nano_1xb8-14e_bccd.py'

model = dict(
    backbone=dict(arch='pp-tiny', drop_path_rate=0.1),
    neck=dict(in_channels=[128, 256, 512]),
)
