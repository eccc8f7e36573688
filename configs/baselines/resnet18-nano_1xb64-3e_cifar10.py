_base_ = ['../_base_/classifier_cifar10.py', '../_base_/backbones/resnet18-nano.py']

model = dict(
    backbone=dict(_base_.resnet18_nano, _delete_=True, out_indices=(3,)),
    head=dict(in_channels=192),
)
