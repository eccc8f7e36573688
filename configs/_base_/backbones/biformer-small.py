# BiFormer-S with ImageNet-1k weights, and as COCO detectors use it.
biformer_small = dict(
    type='mmsparse.BiFormer',
    arch='small',
    out_indices=(0, 1, 2, 3),
    out_norm='layer',
    init_cfg=dict(
        type='Pretrained',
        checkpoint='checkpoints/biformer-small_in1k.pth',
        prefix='backbone.',
    ),
)
biformer_small_coco = dict(
    biformer_small,
    regions_per_side=16,
    drop_path_rate=0.2,
    norm_eval=True,  # BatchNorm, with two images per GPU
    with_cp=True,
)
