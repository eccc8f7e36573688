_base_ = '../_base_/classifier_cifar10.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.StagedTransformer',
        # The windows of feature maps of 16, 8, 4 and 2 tokens per side.
        arch=dict(base='nano', img_size=64),
    )
)
