_base_ = './sparse-detr_r50_keep-30_8xb2-50e_coco.py'

model = dict(keep_ratio=0.1)
