_base_ = './focus-detr_swin-t_8xb2-36e_coco.py'

release = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.8/'
model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint=release + 'swin_tiny_patch4_window7_224_22k.pth')
    )
)
