"""Checkpoint files: reading foreign ones without running their code, writing ours."""

import hashlib
import importlib
import json
import os
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mmsparse.checkpoint import safe_pickle
from mmsparse.errors import UsageError


def read_checkpoint(path: str | Path) -> Any:
    """Read a checkpoint of torch or safetensors; no code of the file runs.

    Args:
        path: The file; one that ends in ``.safetensors`` is read as such.

    Returns:
        What was saved. Objects other than tensors and plain containers are
        :class:`~mmsparse.checkpoint.safe_pickle.Placeholder`.

    Raises:
        UsageError: The file is missing, empty, damaged, no checkpoint, holds no
            tensor, or calls a function; names it.
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
            f'{path} is damaged: {error}. Get the file once more.'
        ) from error
    except Exception as error:  # noqa: BLE001 - a damaged file fails in any way
        reason = str(error).partition('\n')[0]
        raise UsageError(
            f'{path} is damaged, or no checkpoint ({type(error).__name__}: {reason}).'
        ) from error
    if not any(isinstance(value, Tensor) for _, value in safe_pickle.walk(content)):
        raise UsageError(f'{path} holds no tensor; it is no checkpoint of a model.')
    return content


def write_checkpoint(
    path: str | Path, state_dict: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    """Write a checkpoint that mmengine loads, or a safetensors file, by the suffix.

    The file appears under its name only once it is complete. Equal weights with equal
    metadata make equal files.

    Args:
        path: The file to write, in a folder that exists.
        state_dict: The weights.
        meta: What to say of them; strings, for safetensors.
    """
    path = Path(path)
    weights = {  # tensors of their own, not views of larger ones
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in state_dict.items()
    }
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        # Into an open file: else torch writes the file's name into it, and equal
        # weights would have unequal hashes.
        with unfinished.open('wb') as file:
            if _is_safetensors(path):
                data = _safetensors(path).save(weights, metadata=meta)
                file.writelines(_sort_header(data))
            else:
                torch.save({'meta': meta, 'state_dict': weights}, file)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Hash a file.

    Args:
        path: The file.

    Returns:
        Its SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_safetensors(path: Path) -> bool:
    return path.suffix == '.safetensors'


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
    header += b' ' * (-len(header) % 8)  # the weights stay aligned
    return len(header).to_bytes(8, 'little'), header, memoryview(data)[end:]


def _read_torch(path: Path) -> Any:
    rooms = _rooms(path)

    class Unpickler(safe_pickle.Unpickler):
        def room(self, key: str) -> int:
            return rooms.get(key, 0) if rooms else path.stat().st_size

    # What torch takes for the module pickle.
    module = SimpleNamespace(
        __name__=safe_pickle.__name__, load=safe_pickle.load, Unpickler=Unpickler
    )
    return torch.load(
        path, map_location='cpu', pickle_module=module, weights_only=False
    )


def _rooms(path: Path) -> dict[str, int]:
    """Tell the sizes of the parts of a zip archive of torch; none of another file.

    Raises:
        RefusedError: ``torch.load`` would read the file by other means than the pickle
            module.
        DamagedError: The archive would take more memory than the file has bytes.
    """
    if not zipfile.is_zipfile(path):
        if tarfile.is_tarfile(path):
            raise safe_pickle.RefusedError(
                'it is a tar archive, as of torch before 0.2'
            )
        return {}
    with zipfile.ZipFile(path) as archive:
        sizes = {
            part.filename.rpartition('/')[2]: part.file_size
            for part in archive.infolist()
        }
    if 'constants.pkl' in sizes:
        raise safe_pickle.RefusedError('it is a program of TorchScript')
    if (total := sum(sizes.values())) > path.stat().st_size:
        raise safe_pickle.DamagedError(
            f'its parts are compressed, or claim more than there is: {total} bytes in '
            f'a file of {path.stat().st_size}'
        )
    return sizes
