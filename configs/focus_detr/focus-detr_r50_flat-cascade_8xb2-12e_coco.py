_base_ = './focus-detr_r50_8xb2-12e_coco.py'

# Equal parts in all layers, as many in all as the release.
model = dict(cascade=(0.6,) * 6)
