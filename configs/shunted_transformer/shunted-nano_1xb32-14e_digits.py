_base_ = '../biformer/biformer-nano_1xb32-9e_digits.py'

model = dict(
    backbone=dict(_delete_=True, type='mmsparse.ShuntedTransformer', arch='nano')
)
train_cfg = dict(max_epochs=14, val_interval=7)
