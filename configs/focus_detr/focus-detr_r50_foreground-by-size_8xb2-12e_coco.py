_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# The paper: tokens inside a box of a size that fits the level.
model = dict(bbox_head=dict(loss_foreground=dict(assign='size')))
