_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Times 0.6, the mean of the cascade: 20 % of the tokens.
model = dict(keep_ratio=0.333)
