"""The folder of a training."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.config import Config

from mmsparse.errors import UsageError

SETTINGS = 'config.py'
RESULT = 'result.json'  # of a finished training


def check_folder(out: Path) -> None:
    """Raise UsageError if the output folder is a file or below one."""
    for path in (out, *out.parents):
        if path.is_file():
            raise UsageError(f'--out must be a folder; {path} is a file')


@contextlib.contextmanager
def training_lock(folder: Path, label: str) -> Iterator[bool]:
    """Lock the folder of a training; yield False if another process trains there.

    Args:
        folder: The folder, which is created.
        label: Name of the training for a message.

    Yields:
        Whether it is locked, until the end of the context.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / 'lock')
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        print(f'{label}: another process trains it', flush=True)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def check_settings(cfg: Config, work_dir: Path) -> None:
    """Raise UsageError if a folder has a training with another config."""
    settings = work_dir / SETTINGS
    if settings.is_file() and settings.read_text() != cfg.pretty_text:
        raise UsageError(
            f'{work_dir} has a training with other settings; remove it, or choose '
            'another --out'
        )


def keep_settings(cfg: Config, work_dir: Path) -> None:
    """Write the config of a training; raise UsageError if its folder has another."""
    work_dir.mkdir(parents=True, exist_ok=True)
    check_settings(cfg, work_dir)
    (work_dir / SETTINGS).write_text(cfg.pretty_text)
