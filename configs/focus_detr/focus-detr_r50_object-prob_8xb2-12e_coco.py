_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# The paper: probabilities of foreground and class, not logits.
model = dict(object_score='prob')
