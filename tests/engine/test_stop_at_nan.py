import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement

from mmsparse.engine.hooks.stop_at_nan import NotFiniteError

DIGITS = Path(__file__).parents[2] / 'configs/biformer/biformer-nano_1xb32-9e_digits.py'


@pytest.fixture
def hook():
    return HOOKS.build(dict(type='mmsparse.StopAtNaN'))


def batch():
    names = ('a.jpg', 'b.jpg')
    return dict(
        data_samples=[BaseDataElement(metainfo=dict(img_path=x)) for x in names]
    )


def outputs(value):
    return dict(loss=torch.tensor(value), loss_cls=torch.tensor(1.0), acc=float('nan'))


def test_numbers_go_on(hook, tmp_path):
    runner = SimpleNamespace(iter=6, work_dir=str(tmp_path))

    hook.after_train_iter(runner, 6, batch(), outputs(2.0))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_what_is_no_number_ends_the_training_with_a_report(value, hook, tmp_path):
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'iter_5.pth')
    runner = SimpleNamespace(iter=6, work_dir=str(tmp_path))

    with pytest.raises(
        NotFiniteError, match=r"iteration 7 .*'loss': .*nan_report.json"
    ):
        hook.after_train_iter(runner, 6, batch(), outputs(value))

    report = json.loads((tmp_path / 'nan_report.json').read_text())
    assert report == dict(
        iteration=7,
        losses=dict(loss=str(value), loss_cls='1.0'),
        files=['a.jpg', 'b.jpg'],
        last_checkpoint=str(tmp_path / 'iter_5.pth'),
    )


def test_without_a_checkpoint_and_files_the_rest_is_told(hook, tmp_path):
    runner = SimpleNamespace(iter=0, work_dir=str(tmp_path))

    with pytest.raises(NotFiniteError, match='the last whole checkpoint is none yet'):
        hook.after_train_iter(runner, 0, [1], outputs(float('nan')))

    report = json.loads((tmp_path / 'nan_report.json').read_text())
    assert report['files'] == [] and report['last_checkpoint'] is None


def test_a_training_that_diverges_ends_with_a_report(small_digits, run_tool):
    done = run_tool(
        *('train.py', DIGITS, '--work-dir', 'work_dirs/diverging', '--cfg-options'),
        *('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=16'),
        *('train_dataloader.batch_size=4', 'param_scheduler=None'),
        *('default_hooks.checkpoint.by_epoch=False', 'optim_wrapper.clip_grad=None'),
        *('default_hooks.checkpoint.interval=1', 'optim_wrapper.optimizer.lr=1e30'),
        cwd=small_digits,
        check=False,
    )

    work_dir = small_digits / 'work_dirs/diverging'
    report = json.loads((work_dir / 'nan_report.json').read_text())
    assert done.returncode == 1
    last = f'the last whole checkpoint is {report["last_checkpoint"]}'
    assert last in done.stderr.splitlines()[-1]
    assert f'iter_{report["iteration"] - 1}.pth' in report['last_checkpoint']
    assert len(report['files']) == 4
    assert all((small_digits / name).is_file() for name in report['files'])
