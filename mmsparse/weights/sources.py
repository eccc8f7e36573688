"""Find the local file of weights, and download it first if need be."""

import logging
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from filelock import FileLock
from mmengine.logging import print_log

from mmsparse.errors import UsageError
from mmsparse.weights import cache, hub
from mmsparse.weights.download import (
    MismatchError,
    NotReachedError,
    download,
    keep_aside,
    offline,
)
from mmsparse.weights.manifest import Entry, all_entries, closest, find_entry

# As torch.hub: the first digits of the hash; decimal digits alone may be a date.
HASH_IN_NAME = re.compile(r'-(?=\d*[a-f])([\da-f]{8,64})\.')


def locate(source: str | Path | bool, name: str = '') -> Path:
    """Return the local file of weights; download it first if it is in no cache.

    Args:
        source: A path; a URL; ``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``;
            the name of an entry of the manifest or of its classifier; or True for the
            entry of ``name``.
        name: Name of a classifier, for example ``biformer-nano``.

    Returns:
        Path of an existing file. With a hash in the manifest, or in the name in a URL,
        the file has this hash.

    Raises:
        UsageError: Nothing is known by this name, the file does not exist, has another
            hash, or is in no cache and cannot be downloaded.
    """
    if source is True:
        return obtain(find_entry(name))
    if not isinstance(source, (str, Path)) or not str(source).strip('.'):
        raise UsageError(
            'weights must be a path, a URL, hf-hub:OWNER/NAME, a name in mmsparse '
            f'weights list, or True; got {_shorten(source)}'
        )
    text = str(source)
    if text.startswith(hub.SCHEME):
        return _checked(_with_hints(hub.fetch, text))
    if text.startswith('file://'):
        text = url2pathname(urlsplit(text).path)
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if entry := _known(text):
        return obtain(entry, unverified='://' in text)
    if '://' in text:
        return _with_hints(_from_url, text)
    raise UsageError(_missing(path, text))


def _known(text: str) -> Entry | None:
    """Return the entry with this name or URL, or the first one of this classifier."""
    entries = all_entries()
    if any(text in (x.name, x.model) for x in entries):
        return find_entry(text)
    return next((x for x in entries if text in x.urls), None)


def _missing(path: Path, text: str) -> str:
    """Describe why a path is no file."""
    if path.is_dir():
        return f'{path} is a folder; give the file of weights in it'
    if not path.suffix and path.name == text:
        return f'no such file: {path}; {closest(text)}'
    repository = text.removeprefix('hf_hub:')
    if hub.SOURCE.fullmatch(f'{hub.SCHEME}{repository}') and not path.suffix:
        repository = f'{hub.SCHEME}{repository}'
        return f'no such file: {path}; for a repository of the hub, give {repository!r}'
    return f'no such file: {path}'


def _shorten(source: Any) -> str:
    text = repr(source)
    return text if len(text) < 80 else f'a {type(source).__name__}'


def obtain(entry: Entry, unverified: bool = False) -> Path:
    """Return the file of an entry of the manifest; download it unless it is cached.

    Args:
        entry: The entry.
        unverified: Also download a file whose hash is not known.

    Returns:
        The file.

    Raises:
        UsageError: The file has another hash, its hash is not known, or it is in no
            cache and cannot be downloaded.
    """
    path = cache.find(entry) or _with_hints(_download_entry, entry, unverified)
    if entry.sha256 is None:
        _warn_unverified(path)
    return path


def _download_entry(entry: Entry, unverified: bool) -> Path:
    if entry.sha256 is None and not (unverified and entry.urls):
        raise UsageError(_by_hand(entry))
    urls = [url for url in entry.urls if '://' in url]
    if not urls:
        places = ' and '.join(map(str, cache.in_repository(entry)))
        raise UsageError(
            f'{entry.name}: {entry.file} is a file of the repository; no file with its '
            f'SHA-256 {entry.sha256} is at {places}. Copy it to {cache.folder()}'
        )
    return _download(entry.name, urls, entry.file, entry.sha256)


def _warn_unverified(path: Path) -> None:
    print_log(
        f'{path} is unverified, its hash is not known; SHA-256 '
        f'{cache.remembered_sha256(path)}',
        logger='current',
        level=logging.WARNING,
    )


def _by_hand(entry: Entry) -> str:
    text = f'{entry.name}: the hash of {entry.file} is not known'
    page = f'download it from {entry.page} and give its path, or copy it to'
    place = f'{page} {cache.folder() / entry.file}'
    if not entry.urls:
        return f'{text}, nor an address that a program can download from; {place}'
    command = f'mmsparse weights get {entry.name} --unverified'
    return f'{text}, so that it is not downloaded unless you run: {command}; or {place}'


def _from_url(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme not in ('http', 'https'):
        raise UsageError(f'a URL must begin with http:// or https://; got {url!r}')
    file = PurePosixPath(unquote(parts.path)).name
    if file in ('', '..'):
        raise UsageError(f'a URL must end with the name of a file; got {url!r}')
    if found := HASH_IN_NAME.search(file):
        return _download(url, [url], file, found[1])
    path = cache.folder() / file
    if path.is_file() and cache.origin(path) not in (None, url):
        file = f'{path.stem}.{sha256(url.encode()).hexdigest()[:8]}{path.suffix}'
    path = _download(url, [url], file, digest=None)
    _warn_unverified(path)
    return path


def _download(source: str, urls: list[str], file: str, digest: str | None) -> Path:
    """Download a file to the cache, unless it is there with this hash."""
    target = cache.folder() / file
    if target.is_file() and _has(target, digest):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f'.{file}.lock')):  # of other processes
        if target.is_file() and not _has(target, digest):
            _keep_aside(target, digest)
        if not target.is_file():
            if offline():
                raise NotReachedError(f'{source} is not in {target.parent}')
            cache.remember(target, url=download(urls, target, digest))
    return target


def _has(path: Path, digest: str | None) -> bool:
    return digest is None or cache.remembered_sha256(path).startswith(digest)


def _keep_aside(path: Path, digest: str | None) -> None:
    found = cache.remembered_sha256(path)
    print_log(
        f'{path} has SHA-256 {found} instead of {digest}; kept as '
        f'{keep_aside(path, path.name, found)}',
        logger='current',
        level=logging.WARNING,
    )


def _checked(path: Path) -> Path:
    """Return a file of the hub's cache, which has the hash of a large file as name."""
    stored = path.resolve()
    if re.fullmatch(r'[\da-f]{64}', stored.name) and not _has(path, stored.name):
        found = cache.remembered_sha256(path)
        aside = keep_aside(stored, stored.name, found)
        raise MismatchError(
            f'{path} has SHA-256 {found} instead of {stored.name}; kept as {aside}. '
            f'The same command downloads it again'
        )
    return path


def _with_hints(fetch: Callable[..., Path], *arguments: Any) -> Path:
    """Fetch a file; without a network, report what is cached and how to get it."""
    try:
        return fetch(*arguments)
    except NotReachedError as error:
        network = 'HF_HUB_OFFLINE is set' if offline() else 'no network or no answer'
        cached = ', '.join(cache.cached()) or 'none'
        raise NotReachedError(
            f'{error} ({network}). Weights in the cache: {cached}. Fetch it later: '
            f'mmsparse weights get {getattr(arguments[0], "name", arguments[0])}'
        ) from error
