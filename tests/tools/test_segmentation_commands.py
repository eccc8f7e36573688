"""The commands on a released segmentor for ADE20K."""

import argparse
import json
import re
from pathlib import Path

import convert_checkpoint
import numpy as np
import pytest
import torch
from PIL import Image

from mmsparse.apis import build_model, read_config
from mmsparse.conversion.biformer import official_key
from mmsparse.visualization import read_metainfo

ROOT = Path(__file__).parents[2]
CONFIG = """
_base_ = '{root}/configs/biformer/fpn_biformer-small_8xb4-80k_ade20k-512x512.py'
model = dict(
    backbone=dict(arch='nano', init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='data/digits/segmentation', indices=1),
)
test_dataloader = val_dataloader
train_dataloader = val_dataloader
# Two augmented images instead of twelve.
tta_pipeline = {{{{_base_.aligned_flip_pipeline}}}}
"""
PALETTE = [[i, 255 - i, 7] for i in range(150)]


@pytest.fixture(scope='module')
def segmentor(small_digits):
    """Return config and converted checkpoint of a small model with 150 classes."""
    config = small_digits / 'ade20k.py'
    config.write_text(CONFIG.format(root=ROOT))
    torch.manual_seed(0)
    weights = {
        'backbone.' + official_key(key.removeprefix('backbone.'))
        if key.startswith('backbone.')
        else key: tensor
        for key, tensor in build_model(read_config(str(config))).state_dict().items()
    }
    meta = dict(CLASSES=[f'class {i}' for i in range(150)], PALETTE=PALETTE)
    torch.save({'meta': meta, 'state_dict': weights}, small_digits / 'released.pth')
    files = dict(source=small_digits / 'released.pth', target=small_digits / 'new.pth')
    options = dict.fromkeys(('family', 'arch', 'class_ids'))
    options.update(backbone_only=False, force=False)
    convert_checkpoint.convert_file(argparse.Namespace(**files, **options))
    return config, files['target']


def test_mmseg_computes_exactly_the_same_metrics(
    segmentor, small_digits, run_tool, run_host
):
    run_tool('test.py', *segmentor, '--tta', '--out', 'a.json', cwd=small_digits)
    done = run_host(
        *('mmseg', 'test.py', *segmentor, '--tta', '--work-dir', 'mmseg'),
        cwd=small_digits,
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (path,) = (small_digits / 'mmseg').glob('*/*.json')
    of_mmseg = json.loads(path.read_text())
    assert json.loads((small_digits / 'a.json').read_text()) == {
        key: of_mmseg[key] for key in ('aAcc', 'mIoU', 'mAcc')
    }


def test_a_converted_segmentor_keeps_its_classes_and_colors(segmentor):
    meta = torch.load(segmentor[1], weights_only=True)['meta']

    assert meta['dataset_meta']['classes'][149] == 'class 149'
    assert meta['dataset_meta']['palette'] == PALETTE


def test_images_are_drawn_in_the_colors_of_the_dataset(
    segmentor, small_digits, run_tool
):
    config, checkpoint = segmentor
    weights = torch.load(checkpoint, weights_only=True)
    weights['meta'] = {}  # mmseg would use the colors of Cityscapes
    torch.save(weights, small_digits / 'bare.pth')
    Image.new('RGB', (160, 96)).save(small_digits / 'black.png')

    run_tool(
        'infer.py', 'black.png', config, 'bare.pth', '--out', 'drawn', cwd=small_digits
    )

    drawn = np.asarray(Image.open(small_digits / 'drawn/vis/black.png'))
    labels = Image.open(small_digits / 'drawn/preds/black.png').resize((640, 384), 0)
    labels = np.asarray(labels)
    assert drawn.shape == (384, 640, 3)
    palette = np.asarray(read_metainfo(read_config(str(config)))['palette'])
    expected = 0.8 * palette[labels]  # opacity of mmseg
    close = np.abs(drawn - expected).max(-1) <= 1
    assert close.mean() > 0.7  # the rest are names of classes


def test_the_config_of_the_guide_trains_on_its_data(small_digits, run_tool):
    guide = (ROOT / 'docs/segmentation.md').read_text()
    (config,) = re.findall(r'```python\n(_base_ = .*?)```', guide, re.DOTALL)
    config = config.replace("'configs/", f"'{ROOT}/configs/")
    (small_digits / 'mine.py').write_text(config)

    done = run_tool(
        'train.py',
        'mine.py',
        '--cfg-options',
        'model.backbone.init_cfg=None',
        'model.backbone.arch=nano',
        'model.neck.in_channels=[32,64,128,256]',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'train_dataloader.batch_size=2',
        'train_dataloader.dataset.pipeline.3.scale=(192,192)',
        'train_dataloader.dataset.pipeline.4.crop_size=(128,128)',
        'val_dataloader.dataset.pipeline.1.scale=(128,128)',
        'model.data_preprocessor.size=(128,128)',
        *(
            f'{split}_dataloader.{setting}'
            for split in ('train', 'val')
            for setting in ('num_workers=0', 'persistent_workers=False')
        ),
        cwd=small_digits,
    )

    table = done.stdout + done.stderr
    assert re.search(r'\| +background +\|', table)
    assert 'mIoU:' in table
