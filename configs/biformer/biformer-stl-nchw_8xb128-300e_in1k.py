_base_ = 'biformer-stl_8xb128-300e_in1k.py'

model = dict(backbone=dict(arch='stl-nchw'))
