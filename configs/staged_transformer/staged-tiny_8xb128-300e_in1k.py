_base_ = '../_base_/imagenet_deit.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.StagedTransformer',
        arch='tiny',
        drop_path_rate=0.2,
    )
)
