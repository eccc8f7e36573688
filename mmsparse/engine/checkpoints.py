"""Write checkpoints completely or not at all, and find the last undamaged one."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

from mmsparse.checkpoint.files import open_whole
from mmsparse.errors import UsageError

WHOLE_FILE = 'whole_file'  # backend_args=dict(backend=WHOLE_FILE)


class WholeFileBackend(LocalBackend):
    """Local files that are written completely or not at all.

    A file is written under another name and then renamed: a full disk, a kill or Ctrl-C
    leaves the old file.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file; missing folders are created."""
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_whole(target) as file:
            file.write(obj)


register_backend(WHOLE_FILE, WholeFileBackend, force=True)


def last_whole_checkpoint(folder: str | Path) -> Path | None:
    """Return the last undamaged checkpoint in a work directory, None if it has none.

    Newer ones, which are damaged, are logged; if all are damaged, UsageError is raised.
    """
    damaged = []
    for path in _newest_first(Path(folder)):
        damage = find_damage(path)
        if damage is None:
            if damaged:
                print_log(
                    f'Skipped damaged checkpoints: {", ".join(damaged)}. '
                    f'Resuming from {path}.',
                    logger='current',
                    level=logging.WARNING,
                )
            return path
        damaged.append(f'{path} ({damage})')
    if damaged:
        raise UsageError(
            f'all checkpoints are damaged: {", ".join(damaged)}; train without '
            '--resume, or pass another file to it'
        )
    return None


def find_damage(path: str | Path) -> str | None:
    """Return what is wrong with a checkpoint of torch, None if it is undamaged.

    A folder, as DeepSpeed writes it, is not checked.
    """
    if Path(path).is_dir():
        return None
    try:
        with ZipFile(path) as archive:
            member = archive.testzip()  # compares checksums
    except BadZipFile:
        return 'truncated or not a checkpoint'
    except OSError as error:
        return error.strerror or str(error)
    return member and f'{member} in it is damaged'


def _newest_first(folder: Path) -> Iterator[Path]:
    """Yield the checkpoint in mmengine's ``last_checkpoint``, then the others."""
    named = None
    with suppress(OSError, UnicodeDecodeError):
        text = (folder / 'last_checkpoint').read_text().strip()
        # The folder may have been copied or moved since.
        paths = (folder / Path(text).name, Path(text))
        named = next((path for path in paths if text and path.exists()), None)
    if named is not None:
        yield named
    others = [path for path in folder.glob('*.pth') if path != named]
    yield from sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
