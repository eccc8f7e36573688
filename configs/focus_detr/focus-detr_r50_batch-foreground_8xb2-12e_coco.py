_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Normalize the foreground loss over the batch, where images without boxes weigh less.
model = dict(bbox_head=dict(loss_foreground=dict(norm='batch')))
