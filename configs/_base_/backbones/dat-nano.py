# DAT-nano for detection and segmentation, without pretrained weights.
dat_nano = dict(
    type='mmsparse.DAT',
    arch='nano',
    out_indices=(0, 1, 2, 3),
    out_norm='layer',
    # As in the other backbones; DAT was released with torch's initialization.
    init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
)
