"""Epochs and iterations of a study, set in configs that count either."""

import pytest
from mmengine.config import Config
from training.length import Length

from mmsparse.errors import UsageError

WARM_UP = dict(type='LinearLR', by_epoch=False, end=100)
COSINE = dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)
STEPS = dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11])
POLY = dict(type='PolyLR', by_epoch=False, begin=60, end=600)


def config(loop, *schedulers):
    return Config(
        dict(
            train_cfg=loop,
            val_cfg=dict(),
            val_dataloader=dict(batch_size=8),
            val_evaluator=dict(type='Accuracy'),
            param_scheduler=list(schedulers),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            log_processor=dict(type='LogProcessor', window_size=50),
        )
    )


def test_epochs_become_iterations_with_the_schedule():
    cfg = config(dict(by_epoch=True, max_epochs=12), WARM_UP, COSINE, STEPS)

    Length(300, 'iterations').apply(cfg)

    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=300)
    warm_up, cosine, steps = cfg.param_scheduler
    assert warm_up == dict(WARM_UP, end=30)
    assert cosine == dict(type='CosineAnnealingLR', by_epoch=False)
    assert steps == dict(STEPS, by_epoch=False, end=300, milestones=[200, 275])
    assert cfg.default_hooks.checkpoint.by_epoch is False
    assert cfg.default_hooks.checkpoint.interval == 75
    assert cfg.log_processor == dict(
        type='LogProcessor', window_size=50, by_epoch=False
    )


def test_a_warm_up_that_is_short_enough_stays():
    cfg = config(dict(by_epoch=True, max_epochs=12), WARM_UP)

    Length(5000, 'iterations').apply(cfg)

    assert cfg.param_scheduler == [WARM_UP]


def test_iterations_of_a_config_of_iterations_shrink_with_the_schedule():
    loop = dict(type='IterBasedTrainLoop', max_iters=600, val_interval=200)
    cfg = config(loop, dict(WARM_UP, end=60), POLY)

    Length(50, 'iterations').apply(cfg)

    assert cfg.train_cfg.max_iters == 50
    assert cfg.param_scheduler == [dict(WARM_UP, end=5), dict(POLY, begin=5, end=50)]


def test_a_warm_up_has_at_least_one_iteration():
    cfg = config(dict(by_epoch=True, max_epochs=12), WARM_UP)

    Length(3, 'iterations').apply(cfg)

    assert cfg.param_scheduler == [dict(WARM_UP, end=1)]


def test_one_scheduler_and_no_settings_of_logs_are_accepted():
    cfg = config(dict(by_epoch=True, max_epochs=2))
    cfg.param_scheduler = COSINE
    cfg.log_processor = None

    Length(7, 'iterations').apply(cfg)

    assert cfg.param_scheduler == [dict(type='CosineAnnealingLR', by_epoch=False)]
    assert cfg.log_processor == dict(by_epoch=False)


def test_epochs_keep_loop_and_schedule():
    cfg = config(dict(by_epoch=True, max_epochs=12), WARM_UP, COSINE)

    Length(3, 'epochs').apply(cfg)

    assert cfg.train_cfg == dict(by_epoch=True, max_epochs=3)
    assert cfg.param_scheduler == [WARM_UP, COSINE]


@pytest.mark.parametrize('unit', ['epochs', 'iterations'])
def test_nothing_is_evaluated_before_the_end(unit):
    cfg = config(dict(by_epoch=True, max_epochs=12), COSINE)

    Length(3, unit).apply(cfg)

    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None


def test_epochs_of_a_config_of_iterations_are_an_error():
    cfg = config(dict(type='IterBasedTrainLoop', max_iters=600), POLY)

    with pytest.raises(UsageError, match=r'trains by iterations; give iter'):
        Length(3, 'epochs').apply(cfg)


def test_a_length_is_text():
    assert str(Length(1, 'epochs')) == '1 epoch'
    assert str(Length(300, 'iterations')) == '300 iterations'
