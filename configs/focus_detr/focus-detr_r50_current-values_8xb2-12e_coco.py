_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# As in the paper: deformable attention samples the updated tokens.
model = dict(value_source='current')
