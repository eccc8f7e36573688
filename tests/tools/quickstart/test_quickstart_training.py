"""Training runs of the quickstart, resumed."""

import multiprocessing
import os
import random
import signal
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
import torch
from forked import SERVER
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from quickstart import report, runs, training
from quickstart.predictions import spread
from quickstart.tasks import plan
from quickstart.training import ResumeEpoch, train_job
from torch import nn
from torch.utils.data import Dataset
from training.curve import read_curve

from mmsparse.errors import UsageError

FEW = {'train_dataloader.batch_size': 4, 'train_cfg.val_interval': 2}
SHORT = dict(
    classification=FEW
    | {
        'train_cfg.max_epochs': 2,
        'train_dataloader.dataset.indices': 12,
        'val_dataloader.dataset.indices': 20,
        'test_dataloader.dataset.indices': 20,
    },
    segmentation=FEW | {'train_cfg.max_iters': 2},
    detection=FEW | {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.indices': 8},
)


class Noisy(Dataset):
    """Samples with random values, drawn whenever they are loaded."""

    metainfo = {}

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return dict(x=i + random.random() + np.random.rand() + torch.rand(4))


class Linear(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, mode):
        return dict(loss=self.layer(x).square().mean())


class Stop(Hook):
    def __init__(self, until):
        self.until = until

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.until:
            raise KeyboardInterrupt


def train(work_dir, until=None, resume=False):
    """Train for three epochs of four iterations; return runner and weights."""
    torch.manual_seed(0)
    hooks = [dict(type='mmsparse.RepeatableRandomness'), ResumeEpoch(), Stop(until)]
    runner = Runner(
        Linear(),
        str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler'),
            dataset=Noisy(),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=False, T_max=12),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)
        ),
        custom_hooks=hooks,
        randomness=dict(seed=0),
        resume=resume,
        experiment_name=uuid4().hex,  # runners of one name share their history
        log_level='ERROR',
    )
    runner.train()
    return runner, runner.model.state_dict()


@pytest.mark.parametrize('until', [3, 4, 5, 11])
def test_a_training_by_epochs_resumes_within_an_epoch(until, tmp_path):
    _, expected = train(tmp_path / 'unstopped')
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'stopped', until)
    random.seed(1)

    runner, actual = train(tmp_path / 'stopped', resume=True)

    assert (runner.iter, runner.epoch) == (12, 3)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def test_the_time_of_skipped_batches_is_no_time_of_an_iteration(tmp_path, monkeypatch):
    link, messages = multiprocessing.Pipe()
    threads = SimpleNamespace(value=torch.get_num_threads())
    job, runner = SimpleNamespace(folder=tmp_path), SimpleNamespace(iter=6, max_iters=9)
    reporter = training.Reporter(job, threads, link, None, None)

    for now, call in enumerate(
        [
            lambda: reporter.before_train(runner),
            lambda: None,
            lambda: reporter.before_train_iter(runner, 6),
            lambda: reporter.after_train_iter(runner, 6, outputs=dict(loss=0.5)),
        ]
    ):
        clock = SimpleNamespace(perf_counter=lambda now=now: now)
        monkeypatch.setattr(training, 'time', clock)
        call()

    assert messages.recv() == dict(iteration=6)
    assert messages.recv() == dict(iteration=7, seconds=1, loss=0.5)


@pytest.mark.parametrize(
    ('count', 'number', 'chosen'), [(10, 2, [2, 7]), (3, 5, [0, 1, 2]), (0, 4, [])]
)
def test_samples_are_spread_over_the_data(count, number, chosen):
    assert spread(range(count), number) == chosen


def train_fast(*arguments):
    """Train in a process that imports this module, which speeds mmengine up."""
    train_job(*arguments)


@pytest.mark.slow
def test_a_killed_quickstart_resumes_and_ends_with_a_report(
    small_digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, 'get_context', lambda method: SERVER)
    jobs = plan('biformer', tmp_path, 0, small_digits, SHORT)
    for job in jobs.values():
        job.prepare_folder()
    classification = tmp_path / 'classification'

    def kill(job, message):
        if message.get('iteration', 0) >= 2:
            (child,) = multiprocessing.active_children()
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(UsageError, match='classification was ended by SIGKILL'):
        runs.run_all(jobs.values(), train_fast, 1, kill)
    assert list(classification.glob('iter_*.pth'))

    heard = []
    runs.run_all(
        jobs.values(), train_fast, 1, lambda job, x: heard.append((job.task, x))
    )

    assert 'resumed epoch: ' in (classification / 'train.log').read_text()
    iterations = [x['iteration'] for x in read_curve(classification / 'curve.jsonl')]
    assert iterations == [1, 2, 3, 4, 5, 6, 6]  # the last one is validated
    ends = [task for task, message in heard if not message]
    assert ends[0] == 'classification' and len(ends) == 3
    assert {task for task, message in heard if 'drawn' in message} == set(jobs)
    page, _, summary = report.write(tmp_path, 'BiFormer', jobs)
    assert summary.is_file()
    assert page.stat().st_size < 3e6
    assert page.read_text().count('Receptive field') == 2 * len(jobs)
