# A plain Vision Transformer: one feature map of stride 16, as with DC5.
_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py', '../_base_/mmsparse.py']

custom_imports = dict(imports=['mmsparse.registry', 'mmpretrain.models'])
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),  # whole patches
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='deit-small',
        patch_size=16,
        img_size=224,  # of its position embedding, which is resized to the image
        out_type='featmap',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/deit/'
            'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[384]),
)
train_dataloader = dict(batch_size=1)
