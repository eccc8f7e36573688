# Shunted-nano for detection and segmentation, without pretrained weights.
shunted_nano = dict(
    type='mmsparse.ShuntedTransformer',
    arch='nano',
    out_indices=(0, 1, 2, 3),
)
