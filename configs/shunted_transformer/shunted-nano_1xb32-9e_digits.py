_base_ = '../biformer/biformer-nano_1xb32-9e_digits.py'

model = dict(
    backbone=dict(_delete_=True, type='mmsparse.ShuntedTransformer', arch='nano')
)
# No BatchNorm holds the features apart here: at 1e-3 they fall together, and nothing
# is learnt.
optim_wrapper = dict(optimizer=dict(lr=3e-4))
