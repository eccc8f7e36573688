_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# The same keep ratio in all layers, with as many tokens in total as released.
model = dict(cascade=(0.6,) * 6)
