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
# On a CPU, torch crashes when it offloads the model, and mixes up the states of an
# optimizer that it offloads: they share memory.
ON_CPU = """
strategy = dict(
    model_wrapper=dict(device_id='cpu'),
    state_dict_cfg=dict(
        _delete_=True,
        state_dict_type='FULL_STATE_DICT',
        state_dict_config=dict(type='FullStateDictConfig'),
        optim_state_dict_config=dict(
            type='FullOptimStateDictConfig', offload_to_cpu=False
        ),
    ),
)
"""
SHORT = (  # two epochs of four batches of four images per process, in two steps
    'train_cfg.max_epochs=2',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.data_prefix=val',
    'train_dataloader.dataset.indices=32',
    'optim_wrapper.accumulative_counts=2',
    'auto_scale_lr.base_batch_size=32',
)


@pytest.fixture
def train(small_digits, train_in_two):
    """Train by a config with this text; return the log and the checkpoints."""

    def run(name, text, *options):
        config = small_digits / f'{name}.py'
        config.write_text(text)
        options = ['--auto-scale-lr', *options, '--cfg-options', *SHORT]
        done = train_in_two(config, *options, cwd=small_digits)
        paths = [small_digits / 'work_dirs' / name / f'epoch_{i}.pth' for i in (1, 2)]
        checkpoints = [torch.load(path, weights_only=False) for path in paths]
        paths[1].unlink()  # so that --resume starts from the first
        return done.stdout + done.stderr, *checkpoints

    return run


@pytest.mark.slow
def test_fsdp_trains_like_ddp_and_resumes(train):
    bases = [str(DIGITS), str(ROOT / 'configs/_base_/fsdp.py')]
    text = f'_base_ = {bases}\n{PLAIN}{ON_CPU}'
    log, sharded, last = train('fsdp', text)
    resumed_log, _, resumed = train('fsdp', text, '--resume')
    _, whole, _ = train('ddp', f'_base_ = {str(DIGITS)!r}\n{PLAIN}')

    assert 'MMFullyShardedDataParallel' in log
    assert 'Scaling the original LR by 0.25' in log
    assert sharded['state_dict'].keys() == whole['state_dict'].keys()
    assert states(sharded, 'step') == states(whole, 'step')
    torch.testing.assert_close(states(sharded, 'exp_avg'), states(whole, 'exp_avg'))
    # AdamW divides rounding errors of tiny gradients by those gradients.
    close = dict(atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sharded['state_dict'], whole['state_dict'], **close)

    assert 'resumed epoch: 1, iter: 4' in resumed_log
    assert states(last, 'step')[0] == 4
    assert resumed['param_schedulers'] == last['param_schedulers']
    for actual, expected in (
        (resumed['state_dict'], last['state_dict']),
        (resumed['optimizer']['state'], last['optimizer']['state']),
    ):
        torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def states(checkpoint, kind):
    """Return a state of the optimizer, which FSDP saves by the parameters' names."""
    state = checkpoint['optimizer']['state']
    names = [name for name in checkpoint['state_dict'] if name in state]
    return [state[name][kind] for name in names or sorted(state)]


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
