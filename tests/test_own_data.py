"""The recipes of docs/own_data.md, with digits in place of pets."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmsparse.apis import build_model, read_config
from mmsparse.checks import check_data
from mmsparse.models import DAT, BiFormer, ShuntedTransformer

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'own_data.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
CLASSIFICATION, DETECTION, SEGMENTATION, RETINANET = (
    block for block in BLOCKS if block.startswith('_base_')
)
PETS = ('cat', 'dog', 'horse')


def images_in_folders(digits, out):
    for split in ('train', 'val'):
        for digit, name in enumerate(PETS):
            source = digits / 'classification' / split / str(digit)
            shutil.copytree(source, out / split / name)


def boxes(digits, out):
    shutil.copytree(digits / 'detection', out)
    for path in (out / 'annotations').glob('*.json'):
        coco = json.loads(path.read_text())
        for category in coco['categories'][: len(PETS)]:
            category['name'] = PETS[int(category['name'])]
        path.write_text(json.dumps(coco))


def label_maps(digits, out):
    shutil.copytree(digits / 'segmentation', out)
    for path in (out / 'annotations').rglob('*.png'):
        labels = np.asarray(Image.open(path)).copy()
        labels[labels > len(PETS)] = 0
        Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    ('block', 'make', 'classes'),
    [
        (CLASSIFICATION, images_in_folders, PETS),
        (DETECTION, boxes, PETS),
        (SEGMENTATION, label_maps, ('background', *PETS)),
        (RETINANET, boxes, PETS),
    ],
    ids=['classification', 'detection', 'segmentation', 'another head'],
)
def test_a_model_learns_from_the_data_of_the_recipe(
    block, make, classes, small_digits, tmp_path
):
    make(small_digits / 'data' / 'digits', tmp_path / 'mine')
    path = tmp_path / 'mine.py'
    block = block.replace('data/mine', f'{tmp_path}/mine')
    path.write_text(block.replace("'configs/", f"'{ROOT}/configs/"))
    cfg = read_config(str(path))
    assert check_data(cfg, cfg.default_scope) == []

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        train, val = (
            DATASETS.build(loader.dataset)
            for loader in (cfg.train_dataloader, cfg.val_dataloader)
        )
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = build_model(cfg).train()
    model.init_weights()  # level_embed of mmdet is uninitialized memory before
    batch = pseudo_collate([train[0], train[len(train) - 1]])
    batch = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()

    assert tuple(train.metainfo['classes']) == classes
    assert tuple(val.metainfo['classes']) == classes
    assert torch.isfinite(loss)
    assert all(x.grad is not None for x in model.backbone.stages.parameters())


def test_the_table_has_the_widths_of_every_arch():
    rows = re.findall(r'^\| ([\d, ]+) \| (.*) \|$', TEXT, re.MULTILINE)
    for family, backbone in (
        ('DAT', DAT),
        ('BiFormer', BiFormer),
        ('Shunted Transformer', ShuntedTransformer),
    ):
        for arch, settings in backbone.arch_settings.items():
            widths = ', '.join(map(str, settings.embed_dims))
            (names,) = (names for row, names in rows if row == widths)
            own = re.search(rf'{family} ([^;]*)', names)
            assert f'`{arch}`' in (own[1] if own else names), (family, arch)
