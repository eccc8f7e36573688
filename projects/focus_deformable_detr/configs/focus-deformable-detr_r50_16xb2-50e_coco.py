_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '../../../configs/_base_/mmsparse.py',
]
custom_imports = dict(
    imports=['projects.focus_deformable_detr.focus_deformable_detr'],
    allow_failed_imports=False,
)
model = dict(
    type='mmsparse.FocusDeformableDETR',
    bbox_head=dict(type='mmsparse.FocusDeformableDETRHead'),
)
