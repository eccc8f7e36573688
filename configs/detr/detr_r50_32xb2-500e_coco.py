_base_ = '../_base_/detr_500e_coco.py'
