"""Training that is killed while it saves, and resumed from the undamaged checkpoint."""

import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader
from torch import nn

from mmsparse.engine.checkpoints import find_damage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hook(monkeypatch):
    """Return the hook; mmengine reads checkpoints as before after the test."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    return HOOKS.build(dict(type='mmsparse.SafeCheckpoints'))


def runner(work_dir, resume=False, load_from=None, **settings):
    hooks = [CheckpointHook(**settings)]
    return SimpleNamespace(
        hooks=hooks,
        work_dir=str(work_dir),
        model=nn.Identity(),
        _resume=resume,
        _load_from=load_from,
    )


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(), dict(backend='whole_file')),
        (dict(out_dir='elsewhere'), dict(backend='whole_file')),
        (dict(out_dir='s3://bucket'), None),
        (dict(backend_args=dict(backend='local')), dict(backend='local')),
    ],
    ids=['default', 'folder', 'remote', 'chosen'],
)
def test_local_checkpoints_are_written_whole(hook, settings, expected, tmp_path):
    made = runner(tmp_path, **settings)

    hook.before_run(made)

    assert made.hooks[0].backend_args == expected


def test_resuming_without_a_file_starts_from_the_last_undamaged(hook, tmp_path):
    for i in (1, 2):
        torch.save(dict(state_dict=dict(x=torch.zeros(9))), tmp_path / f'epoch_{i}.pth')
        os.utime(tmp_path / f'epoch_{i}.pth', (i, i))
    (tmp_path / 'epoch_2.pth').write_bytes(b'partial')
    resumed, named, fresh = (
        runner(tmp_path, resume=True),
        runner(tmp_path, resume=True, load_from='mine.pth'),
        runner(tmp_path / 'new', resume=True),
    )

    for made in (resumed, named, fresh):
        hook.before_run(made)

    assert resumed._load_from == str(tmp_path / 'epoch_1.pth')
    assert named._load_from == 'mine.pth'
    assert fresh._load_from is None


def test_checkpoints_are_read_without_running_their_code(hook, tmp_path):
    torch.save(dict(state_dict=dict(x=Code(tmp_path / 'ran'))), tmp_path / 'evil.pth')

    with pytest.raises(ValueError, match=r'evil\.pth is refused'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'evil.pth'))

    assert not (tmp_path / 'ran').exists()


class Code:
    """Pickles as a call of a function."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


EPOCHS = (
    'train_cfg.max_epochs=1',
    'train_dataloader.dataset.indices=8',
    'train_dataloader.batch_size=2',
)
TASKS = {
    'mmpretrain': ('biformer/biformer-nano_1xb32-9e_digits', EPOCHS),
    'mmdet': ('focus_detr/focus-detr_biformer-nano_1xb4-4e_digits', EPOCHS),
    'mmseg': (
        'biformer/fpn_biformer-nano_1xb8-1600i_digits',
        ('train_cfg.max_iters=4', 'train_dataloader.batch_size=2'),
    ),
}
CONFIG = """
_base_ = '{root}/configs/{name}.py'
custom_imports = dict(
    imports=['mmsparse.registry', 'rank_hooks'], allow_failed_imports=False
)
custom_hooks = [*_base_.custom_hooks, dict(type='DieWhileSaving')]
default_hooks = dict(checkpoint=dict(interval=1, by_epoch=False, max_keep_ckpts=-1))
"""


@pytest.mark.slow
@pytest.mark.parametrize('host', TASKS)
def test_a_training_killed_while_saving_resumes(host, small_digits, run_host):
    name, options = TASKS[host]
    config = small_digits / f'killed_{host}.py'
    config.write_text(CONFIG.format(root=ROOT, name=name))
    work_dir = small_digits / 'work_dirs' / f'killed-{host}'
    paths = [str(ROOT), str(ROOT / 'tests')]
    train = partial(
        run_host,
        *(host, 'train.py', config, '--work-dir', work_dir),
        cwd=small_digits,
        PYTHONPATH=os.pathsep.join(paths),
    )

    killed = train('--cfg-options', *options)
    assert killed.returncode == -signal.SIGXFSZ
    assert [path.name for path in work_dir.glob('*.pth')] == ['iter_1.pth']
    assert find_damage(work_dir / 'iter_1.pth') is None

    resumed = train(
        *('--resume', '--cfg-options', *options),
        'custom_hooks.6.type=EmptyCacheHook',  # in place of DieWhileSaving
    )
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    assert 'resumed epoch: 0, iter: 1' in resumed.stdout + resumed.stderr
    assert {f'iter_{i}.pth' for i in (1, 2, 3, 4)} <= set(os.listdir(work_dir))
