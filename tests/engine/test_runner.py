"""The runner of mmsparse checks config and data, by its commands and by mim train."""

import json
from pathlib import Path

import pytest
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler

from mmsparse.engine.runner import CheckedRunner
from mmsparse.errors import UsageError

ROOT = Path(__file__).parents[2]
# A config of each library, a mistake, and the start of the message.
MISTAKES = {
    'mmpretrain': (
        'biformer/biformer-nano_1xb32-9e_digits.py',
        'model.head.num_classes=9',
        'model.head.num_classes=9, but the data set of train_dataloader has 10 classes',
    ),
    'mmdet': (
        'biformer/atss_biformer-pico_1xb8-6e_digits.py',
        'model.bbox_head.num_classes=9',
        'model.bbox_head.num_classes=9, but the data set of train_dataloader has 10 ',
    ),
    'mmseg': (
        'biformer/fpn_biformer-nano_1xb8-1600i_digits.py',
        'train_dataloader.dataset.img_suffix=.png',
        'train_dataloader: no images *.png in data/digits/segmentation/images/training',
    ),
}


@pytest.mark.parametrize('host', MISTAKES)
def test_a_mistake_in_the_data_ends_the_training_before_it_starts(
    host, small_digits, run_tool, run_host
):
    config, option, message = MISTAKES[host]
    arguments = (ROOT / 'configs' / config, '--cfg-options', option, '--work-dir')

    done = run_tool('train.py', *arguments, 'wrong', cwd=small_digits, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f'error: {message}')
    assert not (small_digits / 'wrong').exists()  # the runner was not built

    done = run_host(host, 'train.py', *arguments, f'{host}-wrong', cwd=small_digits)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'mmsparse.errors.UsageError: {message}')
    assert not list((small_digits / f'{host}-wrong').rglob('*.pth'))


def test_a_mistake_in_the_config_ends_mim_before_the_model_is_built(
    small_digits, run_host
):
    config = ROOT / 'configs' / MISTAKES['mmdet'][0]
    done = run_host(
        *('mmdet', 'train.py', config, '--work-dir', 'unbuilt', '--cfg-options'),
        'model.neck.in_channels=[1,2]',
        cwd=small_digits,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        'mmsparse.errors.UsageError: model.neck'
    )
    assert not (small_digits / 'unbuilt').exists()


def test_what_is_dropped_from_the_data_is_in_the_log(small_digits, run_tool):
    folder = small_digits / 'data/digits/detection/annotations'
    coco = json.loads((folder / 'train.json').read_text())
    coco['annotations'][0]['bbox'][2] = 0
    (folder / 'dropped.json').write_text(json.dumps(coco))

    run_tool(
        *('train.py', ROOT / 'configs' / MISTAKES['mmdet'][0], '--work-dir', 'noted'),
        *(
            '--cfg-options',
            'train_dataloader.dataset.ann_file=annotations/dropped.json',
        ),
        *('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=2'),
        *('train_dataloader.batch_size=2', 'val_dataloader.dataset.indices=1'),
        cwd=small_digits,
    )

    (log,) = (small_digits / 'noted').glob('*/*.log')
    assert '1 box (first id' in log.read_text()
    assert 'dropped.json not used: width or height below 1 pixel.' in log.read_text()


def test_a_loader_without_a_batch_is_an_error():
    settings = dict(
        dataset=[0, 1, 2],
        batch_size=4,
        num_workers=0,
        drop_last=True,
        sampler=dict(type=DefaultSampler, shuffle=False),
    )

    with pytest.raises(
        UsageError,
        match='A data loader has no batch: 3 images with batch_size=4 and '
        'drop_last=True; lower batch_size or add images',
    ):
        CheckedRunner.build_dataloader(ConfigDict(settings))
    settings['drop_last'] = False
    assert len(CheckedRunner.build_dataloader(ConfigDict(settings))) == 1
