_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Rank object tokens by their best class alone.
model = dict(object_score='class')
