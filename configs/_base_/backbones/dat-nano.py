# DAT-nano for detection and segmentation, without pretrained weights.
dat_nano = dict(
    type='mmsparse.DAT',
    arch='nano',
    out_indices=(0, 1, 2, 3),
    out_norm='layer',
    # As in the other backbones; DAT was released with torch's initialization.
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
)
# For images of more than 256 pixels: strides and offset networks of DAT++, so that
# queries have a quarter of the keys. The strides of nano are for small images.
dat_nano_strided = dict(
    dat_nano,
    arch=dict(base='nano', strides=(8, 4, 2, 1), offset_kernels=(9, 7, 5, 3)),
)
