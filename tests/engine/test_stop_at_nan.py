"""Training stops at a NaN or infinite loss with a report."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement
from scipy.optimize import linear_sum_assignment

from mmsparse.engine.hooks.stop_at_nan import NotFiniteError

CONFIGS = Path(__file__).parents[2] / 'configs'
CLASSIFIER = CONFIGS / 'biformer/biformer-nano_1xb32-9e_digits.py'
DETECTOR = CONFIGS / 'focus_detr/focus-detr_biformer-nano_1xb4-4e_digits.py'


@pytest.fixture
def hook():
    return HOOKS.build(dict(type='mmsparse.StopAtNaN'))


def batch():
    names = ('a.jpg', 'b.jpg')
    return dict(
        data_samples=[BaseDataElement(metainfo=dict(img_path=x)) for x in names]
    )


def outputs(value):
    return dict(
        loss=torch.tensor(value, requires_grad=True),
        loss_cls=torch.tensor(1.0),
        acc=float('nan'),
    )


def test_a_finite_loss_writes_no_report(hook, tmp_path):
    runner = SimpleNamespace(iter=6, work_dir=str(tmp_path))

    hook.after_train_iter(runner, 6, batch(), outputs(2.0))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_any_other_loss_stops_training_with_a_report(value, hook, tmp_path):
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'iter_5.pth')
    runner = SimpleNamespace(iter=6, work_dir=str(tmp_path))

    with pytest.raises(
        NotFiniteError, match=r"losses {'loss': .*iteration 7\. .*nan_report.json"
    ):
        hook.after_train_iter(runner, 6, batch(), outputs(value))

    report = json.loads((tmp_path / 'nan_report.json').read_text())
    assert report == dict(
        iteration=7,
        losses=dict(loss=str(value), loss_cls='1.0'),
        files=['a.jpg', 'b.jpg'],
        last_checkpoint=str(tmp_path / 'iter_5.pth'),
    )


def test_the_report_needs_no_checkpoint_and_no_files(hook, tmp_path):
    runner = SimpleNamespace(iter=0, work_dir=str(tmp_path))

    with pytest.raises(NotFiniteError, match='last undamaged checkpoint: none'):
        hook.after_train_iter(runner, 0, [1], outputs(float('nan')))

    report = json.loads((tmp_path / 'nan_report.json').read_text())
    assert report['files'] == [] and report['last_checkpoint'] is None


def test_nan_costs_of_a_matcher_stop_training_and_other_errors_pass(hook, tmp_path):
    def train_step(data, optim_wrapper):
        return linear_sum_assignment(data['costs'])

    model = SimpleNamespace(train_step=train_step)
    runner = SimpleNamespace(iter=6, work_dir=str(tmp_path), model=model)
    hook.before_train(runner)

    rows, _ = model.train_step(dict(costs=torch.eye(2)), optim_wrapper=None)
    assert rows.tolist() == [0, 1]
    with pytest.raises(ValueError, match='2-D'):
        model.train_step(dict(costs=torch.ones(2)), optim_wrapper=None)
    with pytest.raises(NotFiniteError, match='infinite predictions in iteration 7'):
        model.train_step(batch() | dict(costs=torch.eye(2) / 0), optim_wrapper=None)

    report = json.loads((tmp_path / 'nan_report.json').read_text())
    assert report['files'] == ['a.jpg', 'b.jpg']


@pytest.mark.parametrize(
    ('config', 'batch_size'),
    [
        (CLASSIFIER, 4),
        pytest.param(DETECTOR, 2, marks=pytest.mark.slow),
    ],
    ids=['classifier', 'detector'],
)
def test_a_diverging_training_stops_with_a_report(
    config, batch_size, small_digits, run_tool
):
    work_dir = small_digits / 'work_dirs' / f'diverging-{config.stem}'
    done = run_tool(
        *('train.py', config, '--work-dir', work_dir, '--cfg-options'),
        *('train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=16'),
        *(f'train_dataloader.batch_size={batch_size}', 'param_scheduler=None'),
        *('default_hooks.checkpoint.by_epoch=False', 'optim_wrapper.clip_grad=None'),
        *('default_hooks.checkpoint.interval=1', 'optim_wrapper.optimizer.lr=1e30'),
        cwd=small_digits,
        check=False,
    )

    report = json.loads((work_dir / 'nan_report.json').read_text())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: NaN or infinite')
    last = f'last undamaged checkpoint: {report["last_checkpoint"]}'
    assert last in done.stderr.splitlines()[-1]
    assert f'iter_{report["iteration"] - 1}.pth' in report['last_checkpoint']
    assert len(report['files']) == batch_size
    assert all((small_digits / name).is_file() for name in report['files'])
