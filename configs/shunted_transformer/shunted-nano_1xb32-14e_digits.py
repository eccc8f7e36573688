_base_ = '../_base_/classifier_digits.py'

model = dict(
    backbone=dict(_delete_=True, type='mmsparse.ShuntedTransformer', arch='nano')
)
train_cfg = dict(max_epochs=14, val_interval=7)
