# Classification of digits, with a schedule of minutes on two CPU cores.
_base_ = ['./classifier_small.py', './digits_classification.py']

train_cfg = dict(by_epoch=True, max_epochs=9, val_interval=3)
