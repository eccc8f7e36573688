"""Read checkpoint files without running their code, and write them."""

import hashlib
import importlib
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor

from mmsparse.checkpoint import safe_pickle
from mmsparse.errors import UsageError


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint of torch or safetensors without running code of the file.

    Args:
        path: The file; the suffix ``.safetensors`` marks those of safetensors.

    Returns:
        The saved content, with tensors on the CPU. Objects other than tensors and plain
        containers become :class:`~mmsparse.checkpoint.safe_pickle.Placeholder`.

    Raises:
        UsageError: The file is missing, empty, damaged, no checkpoint, without tensors,
            or calls a function; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'no such file: {path}')
    if path.stat().st_size == 0:
        raise UsageError(f'{path} is empty.')
    read = _safetensors(path).load_file if _is_safetensors(path) else _read_torch
    try:
        content = read(path)
    except safe_pickle.RefusedError as error:
        raise UsageError(
            f'{path} is refused: {error}, and no checkpoint needs that. If you trust '
            f'its source, load it with torch and save its state dict alone.'
        ) from error
    except safe_pickle.DamagedError as error:
        raise UsageError(
            f'{path} is damaged: {error}. Download or copy the file again.'
        ) from error
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything
        if other := _recognize_other(path):
            raise UsageError(f'{path} is {other}.') from error
        reason = str(error).partition('\n')[0]
        raise UsageError(
            f'{path} is damaged, or no checkpoint ({type(error).__name__}: {reason}).'
        ) from error
    if not any(isinstance(value, Tensor) for _, value in safe_pickle.walk(content)):
        raise UsageError(f'{path} holds no tensor; it is no checkpoint of a model.')
    return content


def read_metadata(path: str | Path, content: Any) -> dict[str, Any]:
    """Return the metadata of a file, with the content that was read from it.

    Those of torch are under ``meta``; values in a safetensors file are strings, of
    which those with a JSON list or object are parsed.
    """
    path = Path(path)
    if not _is_safetensors(path):
        meta = content.get('meta') if isinstance(content, Mapping) else None
        return dict(meta) if isinstance(meta, Mapping) else {}
    with importlib.import_module('safetensors').safe_open(path, 'pt') as file:
        metadata = file.metadata() or {}
    return {key: _parse_json(value) for key, value in metadata.items()}


def _parse_json(text: str) -> Any:
    if text[:1] in ('{', '['):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def write_checkpoint(
    path: str | Path, state_dict: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    """Write a checkpoint for mmengine, or a safetensors file, depending on the suffix.

    The file appears under its name only when it is complete. Equal weights with equal
    metadata make equal files.

    Args:
        path: The file to write, in an existing folder.
        state_dict: The weights.
        meta: Metadata; for safetensors all values are strings.
    """
    path = Path(path)
    weights = {  # without the rest of larger storages that these may be views of
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in state_dict.items()
    }
    with open_whole(path) as file:
        if _is_safetensors(path):
            data = _safetensors(path).save(weights, metadata=meta)
            file.writelines(_sort_header(data))
        else:
            # Given a path, torch would write its name into the file, and equal weights
            # would have unequal hashes.
            torch.save({'meta': meta, 'state_dict': weights}, file)


@contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name only when it is complete."""
    unfinished = path.with_name(f'.{path.name}.unfinished')
    try:
        with unfinished.open('wb') as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_safetensors(path: Path) -> bool:
    return path.suffix == '.safetensors'


def _recognize_other(path: Path) -> str | None:
    """Return what a file is that is often saved in place of a checkpoint, or None."""
    with path.open('rb') as file:
        start = file.read(64)
    if start.lstrip()[:1] == b'<':
        return 'a web page instead of a checkpoint; download the file itself'
    if start.startswith(b'version https://git-lfs'):
        return 'a pointer of Git LFS instead of a checkpoint; fetch it: git lfs pull'
    safetensors = _is_safetensors(path)
    if safetensors and start.startswith(b'PK'):
        return "a zip archive, as torch's checkpoints are; rename it to .pth"
    header = int.from_bytes(start[:8], 'little')  # its length
    if not safetensors and start[8:10] == b'{"' and header < path.stat().st_size:
        return 'a file of safetensors; rename it to .safetensors'
    return None


def _safetensors(path: Path) -> ModuleType:
    try:
        return importlib.import_module('safetensors.torch')
    except ImportError as error:
        raise UsageError(
            f'{path} needs safetensors, which is not installed: pip install safetensors'
        ) from error


def _sort_header(data: bytes) -> tuple[bytes | memoryview, ...]:
    """Sort the header of a safetensors file; the library shuffles metadata."""
    end = 8 + int.from_bytes(data[:8], 'little')
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b' ' * (-len(header) % 8)  # keeps the weights aligned
    return len(header).to_bytes(8, 'little'), header, memoryview(data)[end:]


def _read_torch(path: Path) -> Any:
    sizes = _archive_sizes(path)

    class Unpickler(safe_pickle.Unpickler):
        def storage_nbytes(self, key: str) -> int:
            return sizes.get(key, 0) if sizes else path.stat().st_size

    # Has what torch uses of the module pickle.
    module = SimpleNamespace(
        __name__=safe_pickle.__name__, load=safe_pickle.load, Unpickler=Unpickler
    )
    return torch.load(path, 'cpu', pickle_module=module, weights_only=False)


def _archive_sizes(path: Path) -> dict[str, int]:
    """Return the size of every member of torch's zip archive; {} for the old format.

    Raises RefusedError if ``torch.load`` would not read the file by the pickle module
    alone, and DamagedError if it would take more memory than the file has bytes.
    """
    if not zipfile.is_zipfile(path):
        if tarfile.is_tarfile(path):
            raise safe_pickle.RefusedError(
                'it is a tar archive, as of torch before 0.2'
            )
        return {}
    with zipfile.ZipFile(path) as archive:
        sizes = {x.filename.rpartition('/')[2]: x.file_size for x in archive.infolist()}
    if 'constants.pkl' in sizes:
        raise safe_pickle.RefusedError('it is a program of TorchScript')
    if (total := sum(sizes.values())) > path.stat().st_size:
        raise safe_pickle.DamagedError(
            f'its members are compressed or overlap: {total} bytes in a file of '
            f'{path.stat().st_size}'
        )
    return sizes
