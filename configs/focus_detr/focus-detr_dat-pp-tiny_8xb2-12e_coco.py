_base_ = './focus-detr_r50_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='pp-tiny',
        out_indices=(1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.1,
        with_cp=True,
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # The longest key counts: the tables of positions need the rate again.
            'position_bias': dict(lr_mult=0.1, decay_mult=0.0),
        }
    )
)
