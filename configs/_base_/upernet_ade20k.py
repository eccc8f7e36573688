# UPerNet on ADE20K by Swin's recipe.
_base_ = [
    './onedl.py',
    'mmseg::_base_/models/upernet_swin.py',
    './ade20k_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    # For sliding windows: --cfg-options model.test_cfg.mode=slide
    test_cfg=dict(mode='whole', crop_size=(512, 512), stride=(341, 341)),
)
