_base_ = 'shunted-tiny_8xb128-300e_in1k.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.3))
# Only this size uses gradient clipping.
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
