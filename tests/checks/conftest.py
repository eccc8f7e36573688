"""Small data sets, and the checks of a config with them."""

import re

import pytest
from mmengine.config import Config
from pets import NAMES, write
from PIL import Image

from mmsparse.apis import register_host
from mmsparse.checks import check_data
from mmsparse.errors import UsageError


@pytest.fixture
def refused():
    """Check that the data of a config are refused in one line that contains a text."""

    def check(cfg, message):
        with pytest.raises(UsageError, match=re.escape(message)) as info:
            check_data(cfg, cfg.default_scope)
        assert '\n' not in str(info.value)

    return check


@pytest.fixture
def pets(tmp_path):
    """Return the config of a detector, with images of pets and "
    "boxes of three classes."""
    register_host('mmdet')
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        for name in 'abc':
            Image.new('RGB', (40, 30)).save(tmp_path / split / f'{name}.jpg')
        write(tmp_path, split)
    loaders = {
        split: dict(
            dataset=dict(
                type='CocoDataset',
                metainfo=dict(classes=NAMES),
                data_root=str(tmp_path),
                ann_file=f'{split}.json',
                data_prefix=dict(img=f'{split}/'),
            )
        )
        for split in ('train', 'val')
    }
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(bbox_head=dict(type='RetinaHead', num_classes=3)),
            train_dataloader=loaders['train'],
            val_dataloader=loaders['val'],
            val_evaluator=dict(type='CocoMetric', ann_file=f'{tmp_path}/val.json'),
        )
    )
