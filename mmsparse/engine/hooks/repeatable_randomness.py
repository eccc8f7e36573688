"""Make the random numbers of a resumed training those of an uninterrupted one."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmsparse.registry import HOOKS

DATA, MODEL = 0, 1  # random streams


@HOOKS.register_module()
class RepeatableRandomness(Hook):
    """Make a resumed training draw the random numbers of an uninterrupted one.

    mmengine does not save the states of random generators. With this hook, the random
    numbers of the model in an iteration depend on seed, process and iteration only.
    Those of the data depend on seed, process and epoch; in a training by iterations
    they depend on the batches before, which mmengine loads again when it resumes.
    Validation does not change either stream.

    Set ``randomness=dict(seed=...)`` and, in a training by epochs,
    ``persistent_workers=False``.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._states: tuple[Any, ...] = ()

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the stream of the data."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        _seed(runner.seed, DATA, runner.epoch if by_epoch else 0)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Pause the stream of the data and start that of the model."""
        self._states = _states()
        _seed(runner.seed, MODEL, runner.iter)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Continue the stream of the data."""
        _restore(self._states)

    def before_val(self, runner: Runner) -> None:
        """Save the stream of the data."""
        self._states = _states()

    def after_val(self, runner: Runner) -> None:
        """Continue the stream of the data."""
        _restore(self._states)


def _seed(*entropy: int) -> None:
    seed = int(np.random.SeedSequence([*entropy, get_rank()]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _states() -> tuple[Any, ...]:
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu


def _restore(states: tuple[Any, ...]) -> None:
    python, numpy, cpu, gpu = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)
