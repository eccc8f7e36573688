"""Hooks, log back-ends and the compiler of MMEngine in training."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.engine.hooks import NumClassCheckHook
from mmengine.registry import DATASETS, DefaultScope
from mmpretrain.engine.hooks import ClassNumCheckHook

from mmsparse.apis import build_model, read_config

ROOT = Path(__file__).parents[2]
CHECKS = dict(mmdet='before_train_epoch', mmpretrain='before_train')
SHORT = (
    *('train_cfg.max_epochs=4', 'train_cfg.val_interval=1'),
    *('train_dataloader.batch_size=4', 'train_dataloader.dataset.data_prefix=val'),
    *('train_dataloader.dataset.indices=8', 'val_dataloader.dataset.indices=8'),
    *('custom_hooks.6.momentum=0.1', 'custom_hooks.7.patience=1'),
    'custom_hooks.7.min_delta=100.0',
)
COMPILED = """
_base_ = 'configs/biformer/biformer-pico_1xb32-12e_digits.py'
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
def train(run_script, small_digits):
    """Train by a config; return what is printed, and the work directory."""

    def run(name, text, *options):
        path = small_digits / f'{name}.py'
        path.write_text(text.replace("'configs/", f"'{ROOT}/configs/"))
        printed = run_script(
            *('mmpretrain', 'train.py', path, '--work-dir', name, *options)
        )
        return printed, small_digits / name

    return run


def test_weights_are_averaged_and_logged_until_training_stops_early(train, example):
    pytest.importorskip('wandb')

    printed, folder = train('with_hooks', example('EMAHook'), '--cfg-options', *SHORT)

    assert 'the monitored metric did not improve in the last 1 records' in printed
    assert {x.name for x in folder.glob('*.pth')} == {'epoch_1.pth', 'epoch_2.pth'}
    saved = torch.load(folder / 'epoch_2.pth', weights_only=True)
    key = 'backbone.stages.0.0.attn.qkv.weight'
    average, last = saved['state_dict'][key], saved['ema_state_dict'][f'module.{key}']
    assert average.shape == last.shape and not average.equal(last)
    assert list(folder.glob('*/vis_data/events.out.tfevents.*'))
    assert list(folder.glob('*/vis_data/wandb/offline-run-*/run-*.wandb'))


@pytest.mark.parametrize(
    ('host', 'hook', 'head'),
    [
        ('mmdet', NumClassCheckHook, 'bbox_head'),
        ('mmpretrain', ClassNumCheckHook, 'head.loss_module'),
    ],
    ids=['mmdet', 'mmpretrain'],
)
def test_the_number_of_classes_is_checked(
    host, hook, head, model_files, small_digits, monkeypatch
):
    monkeypatch.chdir(small_digits)
    cfg = read_config(str(model_files(host)[0]))
    model = build_model(cfg)
    with DefaultScope.overwrite_default_scope(host):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    loader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(model=model, train_dataloader=loader)
    check = getattr(hook(), CHECKS[host])
    model.get_submodule(head).num_classes = 10

    check(runner)

    model.get_submodule(head).num_classes = 9
    with pytest.raises(AssertionError, match='num_classes'):
        check(runner)


def test_the_train_step_is_compiled(train):
    printed, folder = train('compiled', COMPILED)

    assert 'Model has been "compiled"' in printed
    assert (folder / 'epoch_1.pth').is_file()
