# DAT-T++ with ImageNet-1k weights, a LayerNorm for every output, checkpointed blocks.
dat_pp_tiny = dict(
    type='mmsparse.DAT',
    arch='pp-tiny',
    out_indices=(0, 1, 2, 3),
    out_norm='layer',
    with_cp=True,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='checkpoints/dat-pp-tiny_in1k.pth',
        prefix='backbone.',
    ),
)
