_base_ = ['../_base_/upernet_ade20k.py', '../_base_/backbones/biformer-small.py']

model = dict(
    backbone=dict(
        _base_.biformer_small, _delete_=True, regions_per_side=8, drop_path_rate=0.3
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
# The released config has batch size 16; the result is of 32, says the author.
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
