_base_ = '../_base_/classifier_cifar10.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.BiFormer',
        arch='nano',
        regions_per_side=4,
    ),
)
