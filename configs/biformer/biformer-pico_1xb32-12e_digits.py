_base_ = '../_base_/classifier_digits.py'

model = dict(
    backbone=dict(
        _delete_=True, type='mmsparse.BiFormer', arch='pico', regions_per_side=4
    )
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=12)
# The digits have random colors already.
train_pipeline = [
    transform for transform in _base_.train_pipeline if transform.type != 'ColorJitter'
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
