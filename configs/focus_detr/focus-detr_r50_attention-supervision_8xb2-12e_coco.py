_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Train the token selector to find what the decoder attends to, as Sparse DETR does.
model = dict(bbox_head=dict(loss_dam=dict()))
