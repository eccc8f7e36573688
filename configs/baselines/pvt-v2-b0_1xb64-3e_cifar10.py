_base_ = '../_base_/classifier_cifar10.py'

model = dict(
    # timm's, since mmpretrain has none, and cannot pool the list that mmdet's returns.
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='pvt_v2_b0',
        features_only=True,
        out_indices=(3,),
    ),
)
