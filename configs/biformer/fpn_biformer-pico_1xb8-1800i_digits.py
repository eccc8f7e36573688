_base_ = './fpn_biformer-nano_1xb8-1600i_digits.py'

model = dict(backbone=dict(arch='pico'))
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
train_cfg = dict(max_iters=1800, val_interval=900)
