_base_ = './deformable-detr_shunted-small_8xb2-50e_coco.py'

model = dict(with_box_refine=True)
