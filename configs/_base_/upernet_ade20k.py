# UperNet on ADE20K.
_base_ = ['mmseg::_base_/models/upernet_swin.py', './ade20k_160k.py']

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
    # In windows instead: --cfg-options model.test_cfg.mode=slide
    test_cfg=dict(mode='whole', crop_size=(512, 512), stride=(341, 341)),
)
