"""A panoptic DETR is trained and evaluated by the commands."""

import re

from tiny_panoptic import METAINFO, panoptic_config, write_panoptic_data

CONFIG = """
_base_ = '{root}/configs/_base_/mmsparse.py'
default_scope = 'mmdet'
model = {model}
load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 48))]
segments = dict(type='mmsparse.LoadPanopticSegments', num_things_classes=2)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=keys)
dataset = dict(
    type='CocoPanopticDataset',
    metainfo={metainfo},
    data_root='data',
    ann_file='panoptic.json',
    data_prefix=dict(img='images/', seg='segments/'),
)
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(dataset, pipeline=[load[0], segments, load[1], pack]),
)
val_dataloader = dict(
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, pipeline=[*load, segments, pack], test_mode=True),
)
val_evaluator = dict(
    type='mmsparse.PanopticQuality',
    ann_file='data/panoptic.json',
    seg_prefix='data/segments',
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
"""


def test_two_iterations_and_the_panoptic_quality(tmp_path, run_tool, request):
    write_panoptic_data(tmp_path / 'data')
    resnet = dict(
        type='ResNet',
        depth=18,
        base_channels=4,
        norm_cfg=dict(type='BN'),
        init_cfg=None,
    )
    model = panoptic_config(backbone=resnet)
    model['neck']['in_channels'] = [32]
    model['mask_head']['feat_channels'] = (4, 8, 16)
    text = CONFIG.format(root=request.config.rootpath, model=model, metainfo=METAINFO)
    (tmp_path / 'config.py').write_text(text)

    done = run_tool('train.py', 'config.py', cwd=tmp_path)

    printed = done.stdout + done.stderr
    assert re.search(r'loss_mask: [\d.]+ +loss_dice: [\d.]+', printed)
    assert re.search(r'coco_panoptic/PQ: [\d.]+', printed)
