# Swin's recipe for 160,000 iterations on ADE20K, which SegFormer also uses.
_base_ = ['./onedl.py', 'mmseg::_base_/schedules/schedule_160k.py', './ade20k.py']

train_dataloader = dict(batch_size=2)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1500),
    dict(type='PolyLR', power=1.0, by_epoch=False, begin=1500, end=160000),
]
auto_scale_lr = dict(base_batch_size=16)
