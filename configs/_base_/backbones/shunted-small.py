# Shunted-S with ImageNet-1k weights, and as COCO detectors use it.
shunted_small = dict(
    type='mmsparse.ShuntedTransformer',
    arch='small',
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.2,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='checkpoints/shunted-small_in1k.pth',
        prefix='backbone.',
    ),
)
shunted_small_coco = dict(
    shunted_small,
    norm_eval=True,  # BatchNorm, with two images per GPU
    with_cp=True,
)
