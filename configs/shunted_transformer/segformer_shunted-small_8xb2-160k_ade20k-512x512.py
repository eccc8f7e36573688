_base_ = ['mmseg::_base_/models/segformer_mit-b0.py', '../_base_/ade20k_160k.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='small',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/shunted-small_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150),
    data_preprocessor=dict(size=(512, 512)),
    test_cfg=dict(crop_size=(512, 512), stride=(341, 341)),  # for mode='slide'
)
# SegFormer's: the head learns ten times as fast.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0)}))
