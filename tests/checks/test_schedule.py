"""Schedules that never take effect."""

import pytest
from mmengine.config import Config

from mmsparse.checks.schedule import check_schedule
from mmsparse.errors import UsageError

ITERATIONS = dict(type='IterBasedTrainLoop', max_iters=100)
LINEAR = dict(type='LinearLR', start_factor=0.1, by_epoch=False)


@pytest.mark.parametrize('loop', [ITERATIONS, dict(by_epoch=False, max_iters=100)])
def test_a_scheduler_by_epoch_in_a_training_by_iterations_is_an_error(loop):
    cfg = Config(dict(train_cfg=loop, param_scheduler=[LINEAR, dict(type='PolyLR')]))

    with pytest.raises(
        UsageError,
        match=r'param_scheduler\[1\]\.by_epoch is True, but train_cfg trains by '
        r'iterations, so that the PolyLR would never step; set by_epoch=False',
    ):
        check_schedule(cfg)


def test_checkpoints_by_epoch_in_a_training_by_iterations_are_an_error():
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=10))
    cfg = Config(
        dict(train_cfg=ITERATIONS, param_scheduler=LINEAR, default_hooks=hooks)
    )

    with pytest.raises(
        UsageError, match=r'default_hooks\.checkpoint\.by_epoch is True'
    ):
        check_schedule(cfg)
    cfg.default_hooks.checkpoint.by_epoch = False
    check_schedule(cfg)


def test_any_schedule_by_epoch_passes():
    loop = dict(type='EpochBasedTrainLoop', max_epochs=3)
    cfg = Config(dict(train_cfg=loop, param_scheduler=[LINEAR, dict(type='PolyLR')]))

    check_schedule(cfg)


@pytest.mark.parametrize(
    ('settings', 'new'),
    [
        (dict(lr_config=dict(policy='step')), 'param_scheduler'),
        (dict(data=dict(train=dict())), r'train_dataloader\.dataset'),
        (dict(evaluation=dict(interval=1)), 'val_evaluator'),
        (dict(total_epochs=12), r'train_cfg\.max_epochs'),
    ],
)
def test_settings_of_openmmlab_1_are_an_error(settings, new):
    with pytest.raises(
        UsageError, match=f'of OpenMMLab 1.x and has no effect; set {new}'
    ):
        check_schedule(Config(settings))


def test_variables_of_a_config_with_other_content_pass():
    check_schedule(Config(dict(data='coco', evaluation=None)))


@pytest.mark.parametrize('name', ['max_epochs', 'max_iters', 'val_interval'])
def test_a_loop_without_steps_is_an_error(name):
    with pytest.raises(UsageError, match=f'train_cfg.{name}=0 must be at least 1'):
        check_schedule(Config(dict(train_cfg={name: 0})))
