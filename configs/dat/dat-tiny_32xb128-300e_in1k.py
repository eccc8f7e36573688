_base_ = '../_base_/imagenet_dat.py'

model = dict(
    backbone=dict(_delete_=True, type='mmsparse.DAT', arch='tiny', drop_path_rate=0.2)
)
