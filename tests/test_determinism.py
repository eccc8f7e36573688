"""With one seed, a training repeats every loss to the last bit."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from mmsparse.apis import read_config

CONFIGS = Path(__file__).parents[1] / 'configs'
ITERATIONS = 4
# A classifier, a segmentor and a detector of each backbone.
NANOS = [
    f'{family}/{start}{backbone}-nano_{recipe}_digits.py'
    for family, backbone, epochs in (
        ('biformer', 'biformer', 9),
        ('dat', 'dat', 9),
        ('shunted_transformer', 'shunted', 14),
    )
    for family, start, recipe in (
        (family, '', f'1xb32-{epochs}e'),
        (family, 'fpn_', '1xb8-1600i'),
        ('focus_detr', 'focus-detr_', '1xb4-4e'),
    )
]


@pytest.fixture
def train(small_digits, tmp_path, monkeypatch):
    """Train deterministically and return the loss of every iteration."""
    monkeypatch.chdir(small_digits)

    def run(config, name):
        cfg = read_config(str(CONFIGS / config))
        cfg.work_dir = str(tmp_path / name)
        cfg.experiment_name = f'{tmp_path.name}-{name}'
        cfg.log_level = 'ERROR'
        cfg.randomness = dict(seed=0, deterministic=True)
        cfg.train_cfg = dict(by_epoch=False, max_iters=ITERATIONS)
        cfg.train_dataloader.update(
            batch_size=1, sampler=dict(type='InfiniteSampler', shuffle=True)
        )
        cfg.param_scheduler = None
        for stage in ('val', 'test'):
            for part in ('dataloader', 'evaluator', 'cfg'):
                cfg.pop(f'{stage}_{part}', None)
        runner = Runner.from_cfg(cfg)
        runner.train()
        history, _ = runner.message_hub.get_scalar('train/loss').data
        return history

    yield run
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize('config', NANOS)
def test_a_training_repeats_every_loss(config, train):
    first, second = train(config, 'first'), train(config, 'second')

    assert len(first) == ITERATIONS
    assert first.tolist() == second.tolist()
    assert len(set(first.tolist())) == ITERATIONS
