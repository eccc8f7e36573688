_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Detections do not depend on the other images of a batch.
model = dict(per_image=True)
