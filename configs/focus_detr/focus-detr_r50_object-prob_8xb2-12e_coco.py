_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# As in the paper: multiply probabilities of foreground and class, not logits.
model = dict(object_score='prob')
