_base_ = './fpn_biformer-nano_1xb8-1600i_digits.py'

model = dict(backbone=dict(arch='pico'))
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
