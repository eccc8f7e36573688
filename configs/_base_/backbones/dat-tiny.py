# DAT-T with ImageNet-1k weights, and as COCO detectors use it. The code of the paper's
# dense tasks was not released: stochastic depth is the classifier's.
dat_tiny = dict(
    type='mmsparse.DAT',
    arch='tiny',
    out_indices=(0, 1, 2, 3),
    out_norm='layer',
    drop_path_rate=0.2,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='checkpoints/dat-tiny_in1k.pth',
        prefix='backbone.',
    ),
)
dat_tiny_coco = dict(dat_tiny, with_cp=True)
# The recipe of Swin.
dat_tiny_coco_optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
