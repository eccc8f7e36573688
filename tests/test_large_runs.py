"""FSDP by MMEngine's FlexibleRunner in two processes on the CPU."""

from pathlib import Path

import pytest
import torch

import mmsparse.registry  # noqa: F401, lets torch read checkpoints of mmengine
from mmsparse.apis import read_config

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / 'configs/biformer/biformer-nano_1xb32-9e_digits.py'
# FSDP clips by the norm of the shard of each process.
PLAIN = 'optim_wrapper = dict(clip_grad=None)'
# torch crashes when it offloads on a CPU.
ON_CPU = """
strategy = dict(
    model_wrapper=dict(device_id='cpu'),
    state_dict_cfg=dict(
        _delete_=True,
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig'),
        optim_state_dict_config=dict(type='FullOptimStateDictConfig'),
    ),
)
"""
SHORT = (  # four batches of four images per process, two steps
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.data_prefix=val',
    'train_dataloader.dataset.indices=32',
    'optim_wrapper.accumulative_counts=2',
    'auto_scale_lr.base_batch_size=32',
)


@pytest.fixture
def train(small_digits, train_in_two):
    """Train by a config with this text; return the log and the checkpoint."""

    def run(name, text):
        config = small_digits / f'{name}.py'
        config.write_text(text)
        options = ['--auto-scale-lr', '--cfg-options', *SHORT]
        done = train_in_two(config, *options, cwd=small_digits)
        checkpoint = small_digits / 'work_dirs' / name / 'epoch_1.pth'
        return done.stdout + done.stderr, torch.load(checkpoint, weights_only=False)

    return run


@pytest.mark.slow
def test_fsdp_trains_like_ddp(train):
    bases = [str(DIGITS), str(ROOT / 'configs/_base_/fsdp.py')]
    log, sharded = train('fsdp', f'_base_ = {bases}\n{PLAIN}{ON_CPU}')
    _, whole = train('ddp', f'_base_ = {str(DIGITS)!r}\n{PLAIN}')

    assert 'MMFullyShardedDataParallel' in log
    assert 'Scaling the original LR by 0.25' in log
    assert sharded['state_dict'].keys() == whole['state_dict'].keys()
    for name, tensor in whole['state_dict'].items():
        torch.testing.assert_close(sharded['state_dict'][name], tensor, msg=name)
    steps = {int(state['step']) for state in sharded['optimizer']['state'].values()}
    assert steps == {2}


def test_deepspeed_uses_the_optimizer_of_the_recipe(tmp_path):
    text = (ROOT / 'docs' / 'large_runs.md').read_text()
    example = text[text.index('_base_/deepspeed.py]') :].split('```python\n')[1]
    config = tmp_path / 'mine.py'
    config.write_text(example.split('```')[0].replace("'configs/", f"'{ROOT}/configs/"))

    cfg = read_config(str(config))

    assert cfg.strategy.type == 'DeepSpeedStrategy'
    assert cfg.strategy.zero_optimization.stage == 3
    assert set(cfg.optim_wrapper) == {'type', 'optimizer', 'paramwise_cfg'}
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
