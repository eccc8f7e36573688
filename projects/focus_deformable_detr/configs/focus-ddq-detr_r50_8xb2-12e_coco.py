_base_ = [
    'mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py',
    '../../../configs/_base_/mmsparse.py',
]
custom_imports = dict(
    imports=['projects.focus_deformable_detr.focus_ddq_detr'],
    allow_failed_imports=False,
)
model = dict(
    type='mmsparse.FocusDDQDETR',
    bbox_head=dict(type='mmsparse.FocusDDQDETRHead'),
)
