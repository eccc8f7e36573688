"""Hooks, log back-ends and the compiler of MMEngine in training."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.engine.hooks import NumClassCheckHook
from mmengine.registry import DATASETS, DefaultScope
from mmengine.visualization import WandbVisBackend

from mmsparse.apis import build_model, read_config

HOOKS = """
_base_ = {config!r}
model = dict(head=dict(loss=dict(num_classes=10)))  # which ClassNumCheckHook compares
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EMAHook', momentum=0.1),
    dict(
        type='EarlyStoppingHook', monitor='accuracy/top1', patience=1, min_delta=100.0
    ),
    dict(type='ClassNumCheckHook'),
]
visualizer = dict(
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
)
train_cfg = dict(max_epochs=4, val_interval=1)
train_dataloader = dict(batch_size=4, dataset=dict(data_prefix='val', indices=8))
val_dataloader = dict(dataset=dict(indices=8))
"""
COMPILED = """
_base_ = {config!r}
compile = dict(backend='eager')
model = dict(
    backbone=dict(out_indices=(0,)),
    head=dict(in_channels=32, loss=dict(_delete_=True, type='CrossEntropyLoss')),
)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(max_epochs=1, val_interval=9)
train_dataloader = dict(batch_size=4, dataset=dict(data_prefix='val', indices=4))
"""


@pytest.fixture
def train(run_script, model_files, small_digits):
    """Train with a config; return what is printed, and the work directory."""

    def run(name, text):
        config, _ = model_files('mmpretrain')
        path = small_digits / f'{name}.py'
        path.write_text(text.format(config=str(config)))
        printed = run_script('mmpretrain', 'train.py', path, '--work-dir', name)
        return printed, small_digits / name

    return run


def test_averages_early_stopping_class_checks_and_tensorboard(train):
    printed, folder = train('with_hooks', HOOKS)

    assert 'the monitored metric did not improve in the last 1 records' in printed
    assert {path.name for path in folder.glob('*.pth')} == {
        'epoch_1.pth',
        'epoch_2.pth',
    }
    saved = torch.load(folder / 'epoch_2.pth', weights_only=True)
    key = 'backbone.stages.0.0.attn.qkv.weight'
    current, average = (
        saved['ema_state_dict'][f'module.{key}'],
        saved['state_dict'][key],
    )
    assert current.shape == average.shape and not current.equal(average)
    assert list(folder.glob('*/vis_data/events.out.tfevents.*'))


def test_weights_and_biases_record_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    backend = WandbVisBackend(str(tmp_path), init_kwargs=dict(mode='offline'))
    backend.add_scalar('loss', 1.5, step=1)
    backend.close()

    assert list(tmp_path.glob('wandb/offline-run-*/run-*.wandb'))


def test_detectors_pass_the_check_of_their_classes(
    model_files, small_digits, monkeypatch
):
    monkeypatch.chdir(small_digits)
    cfg = read_config(str(model_files('mmdet')[0]))
    model = build_model(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    loader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(model=model, train_dataloader=loader)

    NumClassCheckHook().before_train_epoch(runner)

    model.bbox_head.num_classes = 9
    with pytest.raises(AssertionError, match='num_classes'):
        NumClassCheckHook().before_train_epoch(runner)


def test_the_train_step_is_compiled(train):
    printed, folder = train('compiled', COMPILED)

    assert 'Model has been "compiled"' in printed
    assert (folder / 'epoch_1.pth').is_file()
