_base_ = 'biformer-tiny_8xb128-300e_in1k.py'

model = dict(backbone=dict(arch='stl'), head=dict(in_channels=768))
