# What small detection transformers on blood cells share.
_base_ = './bccd.py'

bccd_detr = dict(
    data_preprocessor=_base_.bccd_normalization,
    num_queries=60,  # an image has at most 30 cells
    bbox_head=dict(num_classes=3),
    test_cfg=dict(max_per_img=60),
)
