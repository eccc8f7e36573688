# Semantic FPN on ADE20K, tested on images whose sides are multiples of 32.
_base_ = './fpn_ade20k.py'

val_dataloader = dict(dataset=dict(pipeline={{_base_.aligned_test_pipeline}}))
test_dataloader = val_dataloader
tta_pipeline = {{_base_.aligned_tta_pipeline}}
flip_pipeline = {{_base_.aligned_flip_pipeline}}
