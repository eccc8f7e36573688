# Classification of CIFAR-10, with a schedule for 25 minutes on one CPU core.
_base_ = ['./classifier_small.py', './cifar10.py']

train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)
