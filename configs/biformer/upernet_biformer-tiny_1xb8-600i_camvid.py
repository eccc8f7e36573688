# For a GPU: as many iterations as the nano, which is to take 25 minutes on a CPU core.
_base_ = './upernet_biformer-nano_1xb8-600i_camvid.py'

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
