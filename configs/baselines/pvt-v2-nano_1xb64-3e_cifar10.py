_base_ = './pvt-v2-b0_1xb64-3e_cifar10.py'

model = dict(
    backbone=dict(
        embed_dims=(32, 64, 128, 256),
        depths=(2, 2, 2, 1),
        num_heads=(1, 2, 4, 8),
        mlp_ratios=(4, 4, 3, 3),
    ),
)
