import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from safetensors.torch import save_file
from torch import nn

from mmsparse.checkpoint import read_checkpoint
from mmsparse.checkpoint.publish import (
    as_strings,
    portable_config,
    published_meta,
    published_weights,
)

CONFIG = """\
work_dir = '/home/me/work_dirs/run'
data_root = '/data/coco/'
model = dict(
    init_cfg=dict(checkpoint='{here}/checkpoints/ä.pth', prefix='backbone.'),
    url='https://example.org/x.pth',
)
load_from = None
mean = [1.5, 2]
launcher = 'slurm'
"""


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.line(inputs).mean())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint of two iterations with averaged weights, and the model."""
    folder = tmp_path_factory.mktemp('ema')
    runner = Runner(
        Line(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=torch.rand(2, 1), sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
    )
    runner.train()
    return read_checkpoint(folder / 'epoch_1.pth'), runner


def test_averages_are_published_because_mmengine_loads_them(trained):
    checkpoint, runner = trained
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    averages = hook.ema_model.module.state_dict()

    for ema in (None, True):
        weights = published_weights(checkpoint, ema)
        assert set(weights) == {'line.weight', 'line.bias'}
        assert torch.equal(weights['line.bias'], averages['line.bias'])


def test_the_weights_before_averaging_can_be_published(trained):
    checkpoint, runner = trained

    weights = published_weights(checkpoint, ema=False)

    own = runner.model.line.bias
    assert torch.equal(weights['line.bias'], own)
    assert not torch.equal(published_weights(checkpoint)['line.bias'], own)


def test_missing_averages_are_an_error():
    with pytest.raises(ValueError, match='has no averages'):
        published_weights({'state_dict': {'x': torch.ones(1)}}, ema=True)


def test_half_precision_leaves_integers_and_refuses_overflow():
    weights = dict(x=torch.rand(3), steps=torch.tensor(70_000))

    half = published_weights(weights, half=True)

    assert half['x'].dtype == torch.float16
    assert half['steps'] == 70_000
    with pytest.raises(ValueError, match='x has elements too large for half'):
        published_weights(dict(x=torch.tensor([1e6])), half=True)


def test_a_config_keeps_no_path_of_the_machine():
    text = portable_config(CONFIG.format(here=Path.cwd()))

    assert text == (
        "data_root = 'coco/'\n"
        'model = dict(\n'
        "    init_cfg=dict(checkpoint='checkpoints/ä.pth', prefix='backbone.'),\n"
        "    url='https://example.org/x.pth',\n"
        ')\n'
        'mean = [1.5, 2]\n'
    )


def test_a_config_is_not_run(tmp_path):
    seen = tmp_path / 'seen'
    text = f'open({str(seen)!r}, "w")\n'

    assert portable_config(text) == 'open(\'seen\', "w")\n'
    assert not seen.exists()
    assert portable_config('no Python (') is None
    assert portable_config(None) is None


def test_metadata_are_plain_values_of_the_model_alone(tmp_path):
    path = tmp_path / 'x.pth'
    meta = dict(
        epoch=3,
        experiment_name='secret',
        hook_msgs=dict(best_ckpt='/home/me/best.pth'),
        dataset_meta=dict(classes=('cat', 'dog'), weights=np.ones(2), root='/home/me'),
        cfg=CONFIG,
    )
    torch.save(dict(meta=meta, state_dict=dict(x=torch.ones(1))), path)

    kept = published_meta(read_checkpoint(path))

    assert set(kept) == {'epoch', 'dataset_meta', 'cfg', 'mmsparse_version'}
    assert kept['dataset_meta'] == dict(classes=('cat', 'dog'), root='me')
    assert '/home' not in str(kept)


def test_mmengine_reads_safetensors_with_their_metadata(tmp_path):
    path = tmp_path / 'x.safetensors'
    meta = as_strings(dict(dataset_meta=dict(classes=('cat',)), family='dat'))
    save_file(dict(x=torch.arange(3.0)), path, metadata=meta)

    checkpoint = CheckpointLoader.load_checkpoint(str(path), logger='silent')

    assert json.loads(meta['dataset_meta']) == {'classes': ['cat']}
    assert checkpoint['meta'] == dict(dataset_meta={'classes': ['cat']}, family='dat')
    assert checkpoint['state_dict']['x'].tolist() == [0, 1, 2]
