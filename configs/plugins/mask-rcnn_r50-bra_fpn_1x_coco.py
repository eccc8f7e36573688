_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
]

# After the last convolution of every block of stages 3 and 4. Any attention layer of
# mmsparse works here; mmdet passes in_channels.
attention = dict(type='mmsparse.BiLevelRoutingAttention', num_heads=8)
model = dict(
    backbone=dict(
        plugins=[
            dict(
                cfg=attention,
                stages=(False, False, True, True),
                position='after_conv3',
            )
        ]
    )
)
