# For a GPU: as many iterations as the nano, which is to take 25 minutes on a CPU core.
_base_ = './fpn_dat-nano_1xb8-600i_camvid.py'

model = dict(
    backbone=dict(arch='pp-tiny', drop_path_rate=0.1),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
