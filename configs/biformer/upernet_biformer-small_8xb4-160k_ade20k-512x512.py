_base_ = '../_base_/upernet_ade20k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.BiFormer',
        arch='small',
        regions_per_side=8,
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/biformer-small_in1k.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
# The released config has 2 a GPU, but the result is of 32 a step, as the author says.
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
