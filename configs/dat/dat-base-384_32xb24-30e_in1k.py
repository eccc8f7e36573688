# Fine-tuning of dat-base: set its checkpoint as load_from. Windows and position bias
# tables grow from 7 to 12; the tables are resized on loading.
_base_ = 'dat-tiny_32xb128-300e_in1k.py'

model = dict(
    backbone=dict(arch='base-384', drop_path_rate=0.5), head=dict(in_channels=1024)
)

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (438, 438)  # 256 / 224 of 384
test_pipeline[2].crop_size = 384
train_dataloader = dict(batch_size=24, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=24, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-6 * 768 / 512, weight_decay=1e-8))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-7 * 768 / 512,
        end=30,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=768)
