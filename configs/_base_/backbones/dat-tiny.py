# DAT-T with ImageNet-1k weights. The code of the paper's dense tasks was not released:
# stochastic depth is the classifier's.
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
