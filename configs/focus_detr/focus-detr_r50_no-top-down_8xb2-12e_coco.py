_base_ = './focus-detr_r50_8xb2-12e_coco.py'

model = dict(top_down=False)
