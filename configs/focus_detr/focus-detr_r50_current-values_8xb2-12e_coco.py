_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# The paper: deformable attention reads what the layers before have made.
model = dict(value_source='current')
