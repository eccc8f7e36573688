_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Rank object tokens by their foreground score alone.
model = dict(object_score='foreground')
