_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# As in the paper: a token is foreground by the size of the box around it.
model = dict(bbox_head=dict(loss_foreground=dict(assign='size')))
