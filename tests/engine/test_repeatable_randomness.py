"""A resumed training ends in the state of an uninterrupted one."""

import os
import random
import signal
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

ROOT = Path(__file__).parents[2]


class Noisy(Dataset):
    """Samples with random values, drawn whenever they are loaded."""

    metainfo = {}

    def __len__(self):
        return 8

    def __getitem__(self, i):
        drawn = random.random() + np.random.rand() + torch.rand(4)
        return dict(x=i + drawn)


class Dropping(BaseModel):
    """A model with dropout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, mode):
        out = nn.functional.dropout(self.layer(x), 0.5, self.training)
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)


class Nothing(BaseMetric):
    """A metric that draws random numbers and measures nothing."""

    def process(self, data_batch, data_samples):
        torch.rand(3)
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


class Stop(Hook):
    """End the training as a kill does, without ending the process."""

    def __init__(self, until):
        self.until = until

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.until:
            raise Stopped


class Stopped(Exception):  # noqa: N818
    pass


def run(work_dir, by_epoch, until=None, resume=False, repeatable=True):
    """Train for twelve iterations; return the state in the last checkpoint."""
    torch.manual_seed(0)
    loop = dict(by_epoch=by_epoch, val_interval=1 if by_epoch else 4)
    loop |= dict(max_epochs=3) if by_epoch else dict(max_iters=12)
    sampler = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    loader = dict(batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'))
    hooks = [dict(type='EMAHook', momentum=0.1)]
    if repeatable:
        hooks.append(dict(type='mmsparse.RepeatableRandomness'))
    if until:
        hooks.append(Stop(until))
    runner = Runner(
        Dropping(),
        str(work_dir),
        train_dataloader=dict(**loader, dataset=Noisy(), sampler=dict(type=sampler)),
        val_dataloader=dict(
            **loader,
            dataset=Noisy(),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=loop,
        val_cfg=dict(),
        val_evaluator=Evaluator(Nothing()),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=12),
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 5
            )
        ),
        custom_hooks=hooks,
        randomness=dict(seed=0),
        resume=resume,
        experiment_name=uuid4().hex,  # runners of one name share their history
        log_level='ERROR',
    )
    runner.train()
    last = torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)
    losses = last['message_hub']['log_scalars']['train/loss'].data[0]
    return dict(
        losses=torch.tensor(losses),
        learning_rates=[group['lr'] for group in last['optimizer']['param_groups']],
        **{name: last[name] for name in ('state_dict', 'ema_state_dict')},
        moments=last['optimizer']['state'],
    )


@pytest.mark.parametrize('until', [5, 7, 11])
@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_a_resumed_training_ends_in_the_same_state(by_epoch, until, tmp_path):
    expected = run(tmp_path / 'unstopped', by_epoch)
    folder = tmp_path / 'stopped'
    with pytest.raises(Stopped):
        run(folder, by_epoch, until)
    random.seed(1)
    np.random.seed(1)

    actual = run(folder, by_epoch, resume=True)

    assert 'epoch_1.pth' in os.listdir(folder) or 'iter_5.pth' in os.listdir(folder)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


@pytest.mark.parametrize('by_epoch', [True, False], ids=['epochs', 'iterations'])
def test_without_the_hook_the_losses_differ(by_epoch, tmp_path):
    expected = run(tmp_path / 'unstopped', by_epoch, repeatable=False)
    folder = tmp_path / 'stopped'
    with pytest.raises(Stopped):
        run(folder, by_epoch, 7, repeatable=False)

    actual = run(folder, by_epoch, resume=True, repeatable=False)

    assert not torch.equal(actual['losses'], expected['losses'])


CONFIG = f"""
_base_ = '{ROOT}/configs/biformer/biformer-nano_1xb32-9e_digits.py'
custom_imports = dict(
    imports=['mmsparse.registry', 'rank_hooks'], allow_failed_imports=False
)
train_cfg = dict(max_epochs=3)
train_dataloader = dict(batch_size=8, dataset=dict(indices=24))
val_dataloader = dict(dataset=dict(indices=8))
model = dict(backbone=dict(drop_path_rate=0.3))
"""


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_had_not_been(
    small_digits, run_tool, monkeypatch
):
    """With augmentation and stochastic depth, in the second epoch."""
    monkeypatch.setenv('PYTHONPATH', f'{ROOT / "tests"}{os.pathsep}{ROOT}')
    config, killing = small_digits / 'three_epochs.py', small_digits / 'killing.py'
    config.write_text(CONFIG)
    killing.write_text(
        f"_base_ = '{config}'\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='Die', iteration=4)]\n"
    )
    whole, killed = (small_digits / 'work_dirs' / name for name in ('whole', 'killed'))

    def train(config, work_dir, *options, check=True):
        command = ('train.py', config, '--work-dir', work_dir, *options)
        return run_tool(*command, cwd=small_digits, check=check)

    train(config, whole)
    assert train(killing, killed, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in killed.glob('*.pth')] == ['epoch_1.pth']
    train(config, killed, '--resume')

    expected, actual = (
        torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']
        for folder in (whole, killed)
    )
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)
