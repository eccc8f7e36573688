_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# 10 % of the tokens: times 0.6, the mean of the cascade.
model = dict(keep_ratio=0.167)
