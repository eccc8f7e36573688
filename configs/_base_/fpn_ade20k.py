# Semantic FPN on ADE20K by PVT's recipe, with half the learning rate and batch size for
# twice the iterations.
_base_ = [
    './onedl.py',
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    './ade20k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    decode_head=dict(num_classes=150),
    # For sliding windows: --cfg-options model.test_cfg.mode=slide
    test_cfg=dict(mode='whole', crop_size=(512, 512), stride=(341, 341)),
)
train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4)
)
param_scheduler = [dict(type='PolyLR', power=0.9, end=80000, by_epoch=False)]
auto_scale_lr = dict(base_batch_size=16)
