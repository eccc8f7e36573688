_base_ = './focus-detr_r50_8xb2-12e_coco.py'

model = dict(positional_encoding=dict(offset=0.0, temperature=20))
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[20],
        gamma=0.1,
    )
]
