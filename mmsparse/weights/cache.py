"""Files in the caches of torch.hub and the Hugging Face hub, and their hashes."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from mmsparse.checkpoint.files import open_whole, sha256
from mmsparse.weights.hub import hub_folder
from mmsparse.weights.manifest import Entry, all_entries

PACKAGE = Path(__file__).resolve().parents[1]
SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors')
RECORDS = '.mmsparse.json'  # by path: size, time, hash and origin


def folder() -> Path:
    """Return the folder of downloads, that of ``torch.hub`` for files by URL."""
    return Path(torch.hub.get_dir(), 'checkpoints')


def find(entry: Entry) -> Path | None:
    """Return the file of an entry if it is in the repository or in a cache.

    With a known hash that is any file with the hash, else one with the name.
    """
    if entry.sha256 is None:
        return next(iter(named(entry)), None)
    for path in chain(named(entry), _files_of_size(entry.size)):
        if remembered_sha256(path) == entry.sha256:
            return path
    return None


def named(entry: Entry) -> list[Path]:
    """Return the existing files with the name of an entry, whatever their hash is."""
    paths = [*in_repository(entry), folder() / entry.file]
    return [path for path in paths if path.is_file()]


def cached() -> dict[str, Path]:
    """Return the files of all entries that have one, by the name of the entry."""
    found = {entry.name: find(entry) for entry in all_entries()}
    return {name: path for name, path in found.items() if path is not None}


def in_repository(entry: Entry) -> list[Path]:
    """Return where a clone, or an installed package, has the file of an entry."""
    paths = [url for url in entry.urls if '://' not in url]
    return [
        root / path for path in paths for root in (PACKAGE.parent, PACKAGE / '.mim')
    ]


def _files_of_size(size: int | None) -> Iterator[Path]:
    hub = hub_folder()
    snapshots = hub.glob('models--*/snapshots/*/*') if hub else ()
    for path in (*folder().glob('*'), *snapshots):
        if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size == size:
            yield path


def remembered_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; read the file only if it changed since."""
    record = _read_records().get(str(path), {})
    if record.get('state') == _state(path) and 'sha256' in record:
        return record['sha256']
    digest = sha256(path)
    remember(path, sha256=digest)
    return digest


def origin(path: Path) -> str | None:
    """Return the URL that a file was downloaded from, if that is remembered."""
    record = _read_records().get(str(path), {})
    return record.get('url') if record.get('state') == _state(path) else None


def remember(path: Path, **facts: str) -> None:
    """Remember facts about a file until it changes: ``sha256``, ``url``."""
    records = folder() / RECORDS
    with suppress(OSError):  # a cache that this user cannot write to
        records.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{records}.lock'):
            known = {k: x for k, x in _read_records().items() if Path(k).exists()}
            before, state = known.get(str(path), {}), _state(path)
            kept = before if before.get('state') == state else {}
            known[str(path)] = {**kept, 'state': state, **facts}
            with open_whole(records) as file:
                file.write(json.dumps(known, indent=1).encode())


def _read_records() -> Mapping[str, Any]:
    with suppress(OSError, ValueError):
        records = json.loads((folder() / RECORDS).read_text(encoding='utf-8'))
        if isinstance(records, dict):
            return records
    return {}


def _state(path: Path) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]
