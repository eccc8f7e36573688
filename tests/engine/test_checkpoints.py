"""Trainings that stop and go on, and files that are cut short."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmsparse.engine import checkpoints as resume
from mmsparse.engine.checkpoints import find_damage, last_whole_checkpoint
from mmsparse.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def backend():
    return get_file_backend(backend_args=dict(backend='whole_file'))


@contextmanager
def room_for(count):
    """Let no file grow beyond so many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_in_new_folders(backend, tmp_path):
    backend.put(b'weights', tmp_path / 'a' / 'b.pth')

    assert (tmp_path / 'a' / 'b.pth').read_bytes() == b'weights'


def test_a_full_disk_leaves_the_old_file_and_no_other(backend, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    backend.put(b'old', path)

    with room_for(1000), pytest.raises(OSError, match='File too large'):
        backend.put(bytes(5000), path)

    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['epoch_1.pth']


def test_ctrl_c_leaves_no_half_written_file(backend, tmp_path, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupted)

    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new', tmp_path / 'epoch_1.pth')

    assert not os.listdir(tmp_path)


@pytest.fixture
def work_dir(tmp_path):
    """Three checkpoints; MMEngine says that the third is the last."""
    for i in (1, 2, 3):
        path = tmp_path / f'epoch_{i}.pth'
        torch.save(dict(state_dict=dict(weight=torch.full((1000,), i))), path)
        os.utime(path, (i, i))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_checkpoint_is_found(work_dir):
    assert last_whole_checkpoint(work_dir) == work_dir / 'epoch_3.pth'


@pytest.mark.parametrize(
    'damage', [cut, flip_a_bit, lambda path: path.write_bytes(b'')]
)
def test_a_damaged_checkpoint_is_passed_over_and_named(damage, work_dir, monkeypatch):
    told = []
    monkeypatch.setattr(resume, 'print_log', lambda text, **_: told.append(text))
    damage(work_dir / 'epoch_3.pth')

    found = last_whole_checkpoint(work_dir)

    assert found == work_dir / 'epoch_2.pth'
    assert len(told) == 1
    assert 'epoch_3.pth (' in told[0]
    assert f'Going on from {found}' in told[0]


@pytest.mark.parametrize('text', ['', '\0\0\0', 'gone.pth'])
def test_without_a_name_the_newest_is_taken(text, work_dir):
    (work_dir / 'last_checkpoint').write_text(text)

    assert last_whole_checkpoint(work_dir) == work_dir / 'epoch_3.pth'


def test_a_copied_folder_goes_on_with_its_own_files(work_dir, tmp_path_factory):
    copied = tmp_path_factory.mktemp('copied')
    for path in work_dir.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())

    assert last_whole_checkpoint(copied) == copied / 'epoch_3.pth'


def test_a_checkpoint_that_is_a_folder_is_taken_as_it_is(work_dir):
    (work_dir / 'epoch_4.pth').mkdir()
    (work_dir / 'last_checkpoint').write_text('epoch_4.pth')

    assert last_whole_checkpoint(work_dir) == work_dir / 'epoch_4.pth'


def test_nothing_is_found_in_a_new_folder(tmp_path):
    assert last_whole_checkpoint(tmp_path / 'new') is None


def test_if_all_are_damaged_all_are_named(work_dir):
    for path in work_dir.glob('*.pth'):
        cut(path)

    with pytest.raises(
        UsageError, match=r'epoch_3.*epoch_2.*epoch_1.*without --resume'
    ):
        last_whole_checkpoint(work_dir)


def test_damage_is_told(work_dir, tmp_path):
    flip_a_bit(work_dir / 'epoch_1.pth')

    assert 'is damaged' in find_damage(work_dir / 'epoch_1.pth')
    assert find_damage(tmp_path / 'gone.pth') == 'No such file or directory'
    assert find_damage(work_dir / 'last_checkpoint') == 'cut short, or no checkpoint'
    assert find_damage(work_dir / 'epoch_2.pth') is None


class Noisy(Dataset):
    """Samples that are drawn anew whenever they are read."""

    metainfo = {}

    def __len__(self):
        return 8

    def __getitem__(self, i):
        drawn = random.random() + np.random.rand() + torch.rand(4)
        return dict(x=i + drawn)


class Dropping(BaseModel):
    """A model that draws, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, mode):
        out = nn.functional.dropout(self.layer(x), 0.5, self.training)
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)


class Nothing(BaseMetric):
    """Draws, and measures nothing."""

    def process(self, data_batch, data_samples):
        torch.rand(3)
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


class Stop(Hook):
    """What a kill does to the training, without the process."""

    def __init__(self, until):
        self.until = until

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.until:
            raise Stopped


class Stopped(Exception):  # noqa: N818
    pass


def run(work_dir, by_epoch, until=None, resume=False, repeatable=True):
    """Train for twelve iterations; return what the last checkpoint goes on with.

    ``until`` ends earlier.
    """
    torch.manual_seed(0)
    loop = dict(by_epoch=by_epoch, val_interval=1 if by_epoch else 4)
    loop |= dict(max_epochs=3) if by_epoch else dict(max_iters=12)
    kind = 'DefaultSampler' if by_epoch else 'InfiniteSampler'
    loader = dict(batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'))
    hooks = [dict(type='EMAHook', momentum=0.1)]
    if repeatable:
        hooks.append(dict(type='mmsparse.RepeatableRandomness'))
    if until:
        hooks.append(Stop(until))
    runner = Runner(
        Dropping(),
        str(work_dir),
        train_dataloader=dict(**loader, dataset=Noisy(), sampler=dict(type=kind)),
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
        experiment_name=uuid4().hex,  # runners of one name share their history,
        log_level='ERROR',
    )
    runner.train()
    last = torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)
    losses = last['message_hub']['log_scalars']['train/loss'].data[0]
    return dict(
        losses=torch.tensor(losses),
        rates=[group['lr'] for group in last['optimizer']['param_groups']],
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
def test_without_the_hook_they_differ(by_epoch, tmp_path):
    expected = run(tmp_path / 'unstopped', by_epoch, repeatable=False)
    folder = tmp_path / 'stopped'
    with pytest.raises(Stopped):
        run(folder, by_epoch, 7, repeatable=False)

    actual = run(folder, by_epoch, resume=True, repeatable=False)

    assert not torch.equal(actual['losses'], expected['losses'])


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_had_not_been(small_digits, run_tool):
    """Augmentation, stochastic depth and all; killed at a random moment."""
    command = [
        *(ROOT / 'configs/biformer/biformer-nano_1xb32-9e_digits.py', '--cfg-options'),
        *('train_cfg.max_epochs=3', 'train_dataloader.batch_size=8'),
        *('train_dataloader.dataset.indices=24', 'val_dataloader.dataset.indices=8'),
        'model.backbone.drop_path_rate=0.3',
    ]
    whole, killed = (small_digits / 'work_dirs' / name for name in ('whole', 'killed'))
    run_tool('train.py', *command, f'work_dir={whole}', cwd=small_digits)

    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', ROOT / 'tools/train.py', *command]
        + [f'work_dir={killed}'],
        cwd=small_digits,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not (killed / 'last_checkpoint').exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.random())
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / 'epoch_3.pth').exists()
    run_tool(
        'train.py',
        command[0],
        '--resume',
        *command[1:],
        f'work_dir={killed}',
        cwd=small_digits,
    )

    expected, actual = (
        torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']
        for folder in (whole, killed)
    )
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)
