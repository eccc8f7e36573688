_base_ = '../_base_/classifier_cifar10.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='nano',
    ),
)
