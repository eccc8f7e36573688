"""Weights in repositories of the Hugging Face hub."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mmsparse.errors import UsageError
from mmsparse.weights.download import NotReachedError, offline

SCHEME = 'hf-hub:'
SOURCE = re.compile(r'hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>.+))?')
WEIGHTS = 'model.safetensors'
FILES = (WEIGHTS, 'pytorch_model.bin')
SUFFIXES = ('.safetensors', '.pth', '.bin')


def hub_folder() -> Path | None:
    """Return the cache of the hub, None if its library is not installed."""
    if find_spec('huggingface_hub') is None:
        return None
    return Path(import_module('huggingface_hub.constants').HF_HUB_CACHE)


def fetch(source: str) -> Path:
    """Return the file of weights of a repository; download it unless it is cached.

    Args:
        source: ``hf-hub:owner/name``, and ``@revision`` for a branch, tag or commit.

    Returns:
        Its ``model.safetensors`` or ``pytorch_model.bin``, else its only file of
        weights.

    Raises:
        UsageError: There is no such repository, revision or file, or no network.
    """
    found = SOURCE.fullmatch(source)
    if found is None:
        raise UsageError(
            f'the source must be hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION; got '
            f'{source!r}'
        )
    hub, errors = library(), import_module('huggingface_hub.errors')
    try:
        return _fetch(hub, errors, *found.groups())
    except errors.GatedRepoError as error:
        raise UsageError(f'{source}: ask its owner for access on its page') from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f'{source}: no such repository, or a private one: hf auth login'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f'{source}: no such branch, tag or commit') from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise NotReachedError(f'{source} is not in {hub_folder()}') from error


def _fetch(
    hub: ModuleType, errors: ModuleType, repo: str, revision: str | None
) -> Path:
    def get(name: str) -> Path:
        local = offline()
        return Path(
            hub.hf_hub_download(repo, name, revision=revision, local_files_only=local)
        )

    missing: Exception | None = None
    for name in FILES:
        try:
            return get(name)
        except errors.EntryNotFoundError as error:
            missing = error
    if isinstance(missing, errors.LocalEntryNotFoundError):
        raise missing
    names = hub.HfApi().list_repo_files(repo, revision=revision)
    weights = [name for name in names if name.endswith(SUFFIXES)]
    if len(weights) != 1:
        raise UsageError(
            f'{SCHEME}{repo} must have {" or ".join(FILES)}, or one other file of '
            f'weights; got {weights or names}'
        )
    return get(weights[0])


def library() -> ModuleType:
    """Import ``huggingface_hub``; raise UsageError if it is not installed."""
    try:
        return import_module('huggingface_hub')
    except ImportError as error:
        raise UsageError(
            "the hub needs huggingface_hub: pip install 'mmsparse[hub]'"
        ) from error
