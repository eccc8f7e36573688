# BiFormer-nano for detection and segmentation, without pretrained weights.
biformer_nano = dict(
    type='mmsparse.BiFormer',
    arch='nano',
    out_indices=(0, 1, 2, 3),
    out_norm='layer',
)
