_base_ = [
    '../_base_/onedl.py',
    'mmseg::_base_/models/segformer_mit-b0.py',
    '../_base_/ade20k_160k.py',
    '../_base_/backbones/shunted-small.py',
]

model = dict(
    backbone=dict(_base_.shunted_small, _delete_=True),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150),
    data_preprocessor=dict(size=(512, 512)),
    test_cfg=dict(crop_size=(512, 512), stride=(341, 341)),  # for mode='slide'
)
# As in SegFormer, the head has ten times the learning rate.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0)}))
