"""A process that imports this has full caches, and so have its forks."""

from fast_mmengine import fill_caches

fill_caches('mmdet', 'mmseg', 'mmpretrain')
