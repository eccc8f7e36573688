_base_ = ['../_base_/classifier_cifar10.py', '../_base_/backbones/swin-nano.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=dict(embed_dims=32, depths=[2, 2, 2, 1], num_heads=[1, 2, 4, 8]),
        img_size=64,
        window_size=4,  # feature maps have 16, 8, 4 and 2 tokens per side
        pad_small_map=True,
        drop_path_rate=0.0,
    ),
)
optim_wrapper = dict(paramwise_cfg=_base_.swin_nano_decay)
