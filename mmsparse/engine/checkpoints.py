"""Trainings that stop and go on: whole checkpoints, and the same random numbers."""

import logging
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmsparse.errors import UsageError
from mmsparse.registry import HOOKS

DATA, MODEL = 0, 1  # streams of random numbers


class WholeFileBackend(LocalBackend):
    """Files of this machine, which are written whole or not at all.

    A checkpoint is written beside its place and then moved there: a full disk, a kill
    or Ctrl-C leaves what was there before. To be asked for as
    ``default_hooks=dict(checkpoint=dict(backend_args=dict(backend='whole_file')))``,
    as ``tools/train.py`` does.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Args:
            obj: What it shall hold.
            filepath: Its place; folders are made.
        """
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f'.{target.name}.{os.getpid()}')
        try:
            unfinished.write_bytes(obj)
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)


register_backend('whole_file', WholeFileBackend, force=True)


def last_whole_checkpoint(folder: str | Path) -> Path | None:
    """Find the checkpoint that a training can go on from.

    Args:
        folder: The work directory of the training.

    Returns:
        The last checkpoint that can be read to its end; None if there is none at all.

    Raises:
        UsageError: There are checkpoints, and all are damaged; names them.
    """
    damaged = []
    for path in _newest_first(Path(folder)):
        fault = find_damage(path)
        if fault is None:
            if damaged:
                print_log(
                    f'Damaged and passed over: {", ".join(damaged)}. '
                    f'Going on from {path}.',
                    logger='current',
                    level=logging.WARNING,
                )
            return path
        damaged.append(f'{path} ({fault})')
    if damaged:
        raise UsageError(
            f'no checkpoint can be read to its end: {", ".join(damaged)}; train '
            'without --resume, or name another file after it'
        )
    return None


def find_damage(path: str | Path) -> str | None:
    """Tell what is wrong with a checkpoint of torch.

    Args:
        path: The file; a folder, as DeepSpeed writes, is not looked into.

    Returns:
        What is wrong; None if the file is whole.
    """
    if Path(path).is_dir():
        return None
    try:
        with ZipFile(path) as archive:
            part = archive.testzip()  # compares checksums
    except BadZipFile:
        return 'cut short, or no checkpoint'
    except OSError as error:
        return error.strerror or str(error)
    return part and f'{part} in it is damaged'


def _newest_first(folder: Path) -> Iterator[Path]:
    """What MMEngine calls the last checkpoint, then the others."""
    named = None
    with suppress(OSError, UnicodeDecodeError):
        text = (folder / 'last_checkpoint').read_text().strip()
        # The folder may have been copied or moved since.
        places = (folder / Path(text).name, Path(text))
        named = next((path for path in places if text and path.exists()), None)
    if named is not None:
        yield named
    others = [path for path in folder.glob('*.pth') if path != named]
    yield from sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


@HOOKS.register_module()
class RepeatableRandomness(Hook):
    """Let a resumed training draw the numbers that it would have drawn unstopped.

    MMEngine stores no states of random generators. With this hook, what the model draws
    in an iteration depends on the seed, the process and the iteration alone; what the
    data draw depends on the seed, the process and the epoch, or, in a training by
    iterations, on the draws for the batches before, which MMEngine reads again when it
    resumes. Validation changes neither. ``randomness=dict(seed=...)`` must be set, and
    of the loaders' processes ``persistent_workers`` must be false in a training by
    epochs.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self._states: tuple[Any, ...] = ()

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin the stream of the data.

        Args:
            runner: Knows seed and epoch.
        """
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        _seed(runner.seed, DATA, runner.epoch if by_epoch else 0)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Begin the stream of the model.

        Args:
            runner: Knows seed and iteration.
            batch_idx: Not used.
            data_batch: Not used.
        """
        self._states = _states()
        _seed(runner.seed, MODEL, runner.iter)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Go on with the stream of the data.

        Args:
            runner: Not used.
            batch_idx: Not used.
            data_batch: Not used.
            outputs: Not used.
        """
        _restore(self._states)

    def before_val(self, runner: Runner) -> None:
        """Keep the streams.

        Args:
            runner: Not used.
        """
        self._states = _states()

    def after_val(self, runner: Runner) -> None:
        """Go on with the streams.

        Args:
            runner: Not used.
        """
        _restore(self._states)


def _seed(*numbers: int) -> None:
    entropy = np.random.SeedSequence([*numbers, get_rank()])
    value = int(entropy.generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


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
