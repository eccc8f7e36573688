"""Download a file over HTTP: mirrors, resuming, hash check."""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from mmengine.logging import print_log
from torch.hub import tqdm

from mmsparse import __version__
from mmsparse.checkpoint.files import sha256
from mmsparse.errors import UsageError

BLOCK = 1 << 17
TIMEOUT = 30.0  # seconds without an answer
PAUSE = 1.0  # seconds before an interrupted download is resumed
AGENT = f'mmsparse/{__version__}'


class NotReachedError(UsageError):
    """Weights are in no cache, and the network or the servers cannot be reached."""


class MismatchError(UsageError):
    """A file has another hash than the expected one."""


def offline() -> bool:
    """Return whether the user allows no network, by the hub's ``HF_HUB_OFFLINE``."""
    return os.environ.get('HF_HUB_OFFLINE', '').upper() in ('1', 'ON', 'YES', 'TRUE')


def download(urls: Sequence[str], target: Path, digest: str | None = None) -> str:
    """Download a file from the first URL that has it.

    The file appears under its name only when it is complete and has the hash. Until
    then it is ``NAME.part``, with which a later call resumes. One process at a time may
    download to a target.

    Args:
        urls: Where to get it, in order.
        target: The file to write, in an existing folder.
        digest: Its SHA-256 or the first digits; None if it is not known.

    Returns:
        The URL that it is from.

    Raises:
        MismatchError: A file has another hash; it is kept under another name.
        NotReachedError: No server can be reached, or has the file.
    """
    part, errors = Part(target), []
    for url in urls:
        try:
            part.fetch(url, digest is not None)
            _accept(part, url, digest)
        except (OSError, HTTPException, UsageError) as error:
            errors.append(error)
            if len(errors) < len(urls):
                print_log(_describe(url, error), 'current', logging.WARNING)
        else:
            return url
    text = '; '.join(map(_describe, urls, errors))
    mismatch = any(isinstance(error, MismatchError) for error in errors)
    raise (MismatchError if mismatch else NotReachedError)(f'{target.name}: {text}')


def keep_aside(path: Path, found: str) -> Path:
    """Rename a file with an unexpected hash, so that it is not loaded again."""
    return path.rename(path.with_name(f'{path.name}.unexpected-{found[:8]}'))


class Part:
    """The part of a file that is downloaded, and a note where it is from.

    Args:
        target: The complete file.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f'{target.name}.part')
        self.note = target.with_name(f'{target.name}.part.json')

    @property
    def size(self) -> int:
        """Number of bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def remove(self) -> None:
        """Forget what is downloaded."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file its name."""
        os.replace(self.path, self.target)
        self.note.unlink(missing_ok=True)

    def fetch(self, url: str, any_source: bool) -> None:
        """Download the rest, and resume as long as there is progress.

        Args:
            url: Where from.
            any_source: Whether to resume a part from another URL, or of another
                version of the file; its hash must be checked then.
        """
        while True:
            before = self.size
            try:
                return self._receive(url, any_source)
            except HTTPError as error:
                if error.code != 416 or not before:  # the range is not satisfiable
                    raise
                self.remove()
            except (OSError, HTTPException):
                if self.size <= before:
                    raise
                time.sleep(PAUSE)

    def _receive(self, url: str, any_source: bool) -> None:
        headers = {'User-Agent': AGENT, **self._range(url, any_source)}
        request = Request(url, headers=headers)
        with urlopen(request, timeout=TIMEOUT) as answer:
            if answer.headers.get_content_type() == 'text/html':
                raise UsageError('answers with a web page instead of a file')
            resumed = answer.status == 206 and _start(answer) == self.size
            if not resumed:
                self.remove()
            if answer.status == 206 and not resumed:
                raise UsageError(
                    f'sent a range that was not requested: {_start(answer)}'
                )
            self._write_note(url, answer.headers)
            self._append(answer)

    def _append(self, answer: HTTPResponse) -> None:
        start = self.size
        length = answer.headers.get('Content-Length')
        total = start + int(length) if length else None
        bar = tqdm(
            desc=self.target.name,
            total=total,
            initial=start,
            unit='B',
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )
        with self.path.open('ab') as file, bar:
            while block := answer.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if total is not None and self.size != total:
            raise ConnectionError(f'ended after {self.size} of {total} bytes')

    def _range(self, url: str, any_source: bool) -> dict[str, str]:
        """Return the headers of a request for the rest; {} for the whole file."""
        if not self.size:
            return {}
        rest = {'Range': f'bytes={self.size}-'}
        note = self._read_note()
        if note.get('url') == url and note.get('version'):
            return {**rest, 'If-Range': note['version']}
        return rest if any_source else {}

    def _read_note(self) -> Mapping[str, str]:
        with suppress(OSError, ValueError):
            return json.loads(self.note.read_text(encoding='utf-8'))
        return {}

    def _write_note(self, url: str, headers: Mapping[str, str]) -> None:
        tag = headers.get('ETag', '')
        version = headers.get('Last-Modified') if tag[:2] in ('', 'W/') else tag
        note = json.dumps({'url': url, 'version': version})
        self.note.write_text(note, encoding='utf-8')


def _accept(part: Part, url: str, digest: str | None) -> None:
    """Give a complete file its name if it has the hash."""
    found = sha256(part.path)
    if digest is not None and not found.startswith(digest):
        part.note.unlink(missing_ok=True)
        aside = keep_aside(part.path, found)
        raise MismatchError(f'has SHA-256 {found} instead of {digest}; kept as {aside}')
    part.finish()


def _start(answer: HTTPResponse) -> int | None:
    """Return the first byte of a range, None if the answer does not say it."""
    unit, _, rest = answer.headers.get('Content-Range', '').partition(' ')
    first = rest.partition('-')[0]
    return int(first) if unit == 'bytes' and first.isdigit() else None


def _describe(url: str, error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f'{url} answers {error.code} {error.reason}'
    reason = error.reason if isinstance(error, URLError) else error
    return f'{url}: {reason or type(error).__name__}'
