_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Detections that do not change with the other pictures of a batch.
model = dict(per_image=True)
