"""Weights in repositories of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mmengine.logging import print_log

from mmsparse.errors import UsageError, format_error
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
    hub = library()
    with _hub_errors(source):
        names = _list_files(hub, *found.groups())
        weights = [name for name in FILES if name in names]
        weights = weights or [name for name in names if name.endswith(SUFFIXES)]
        if not weights or (len(weights) > 1 and weights[0] not in FILES):
            raise UsageError(
                f'{source} must have {" or ".join(FILES)}, or one other file of '
                f'weights; got {names}'
            )
        repo, revision = found.groups()
        return Path(
            hub.hf_hub_download(
                repo, weights[0], revision=revision, local_files_only=offline()
            )
        )


def upload(folder: Path, repository: str, private: bool, message: str) -> str:
    """Create a repository unless it exists, and commit the files of a folder.

    Args:
        folder: The files.
        repository: ``owner/name``.
        private: Whether a new repository is private.
        message: Of the commit.

    Returns:
        URL of the commit.

    Raises:
        UsageError: The user is not logged in or may not write, or there is no network.
    """
    hub = library()
    source = f'{SCHEME}{repository}'
    if SOURCE.fullmatch(source) is None:
        raise UsageError(f'the repository must be OWNER/NAME; got {repository!r}')
    if offline():
        raise UsageError(f'HF_HUB_OFFLINE is set, so that {repository} is not changed')
    with _hub_errors(source):
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message
        )
    return commit.commit_url


def _list_files(hub: ModuleType, repo: str, revision: str | None) -> list[str]:
    """List the files of a repository, without a network the cached ones."""
    if not offline():
        try:
            info = hub.HfApi().model_info(repo, revision=revision)
            return [file.rfilename for file in info.siblings]
        except Exception as error:  # noqa: BLE001 - of the HTTP library of the version
            if 400 <= _status(error) < 500:
                raise
            print_log(f'{SCHEME}{repo}: {format_error(error)}', 'current')
    folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
    return [x.relative_to(folder).as_posix() for x in folder.rglob('*') if x.is_file()]


def _status(error: Exception) -> int:
    """Return the status of an HTTP answer, 0 for other errors."""
    return getattr(getattr(error, 'response', None), 'status_code', 0)


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Raise errors of the hub as one line with the way out."""
    errors = import_module('huggingface_hub.errors')
    login = 'log in by: hf auth login, or set HF_TOKEN'
    try:
        yield
    except errors.GatedRepoError as error:
        raise UsageError(
            f'{source}: ask for access on its page, and {login}'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f'{source}: no such repository, or a private one; {login}'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f'{source}: no such branch, tag or commit') from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise NotReachedError(f'{source} is not in {hub_folder()}') from error
    except errors.LocalTokenNotFoundError as error:
        raise UsageError(f'{source}: {login}') from error
    except errors.HfHubHTTPError as error:
        hint = f'; {login}' if _status(error) in (401, 403) else ''
        raise UsageError(f'{source}: {format_error(error)}{hint}') from error


def library() -> ModuleType:
    """Import ``huggingface_hub``; raise UsageError if it is not installed."""
    try:
        return import_module('huggingface_hub')
    except ImportError as error:
        raise UsageError(
            'the hub needs huggingface_hub: pip install huggingface_hub safetensors'
        ) from error
