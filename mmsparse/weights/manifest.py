"""The manifest of weights: one entry for each file that is known."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from mmsparse.errors import UsageError

MANIFEST = Path(__file__).with_name('weights.json')
CLASSIFICATION = 'classification'


@dataclass(frozen=True)
class Entry:
    """Weights in one file.

    Args:
        name: Name of the config, unique in the manifest.
        family: Key of ``BACKBONES``, or the method, for example ``focus_detr``.
        arch: Arch of the backbone.
        task: ``classification``, ``detection`` or ``segmentation``.
        config: Path of the config.
        official: Whether others released them, under keys to be converted.
        file: Name of the file; that of the release, if it is known.
        sha256: SHA-256 of the file; None if nobody measured it.
        tensors_sha256: That of the tensors, whatever file they are in; see
            :func:`~mmsparse.checkpoint.state_dict.tensors_sha256`.
        size: Size of the file in bytes; known if its SHA-256 is.
        license: License of the page; None if it gives none.
        page: Page of the release.
        urls: Where to get the file, in order: URLs, or paths in the repository.
        data: Data that they were trained on.
        metrics: Expected results by name, in percent.
    """

    name: str
    family: str
    arch: str
    task: str
    config: str
    official: bool
    file: str
    sha256: str | None
    tensors_sha256: str | None
    size: int | None
    license: str | None
    page: str | None
    urls: tuple[str, ...]
    data: str
    metrics: Mapping[str, float]

    @property
    def model(self) -> str:
        """Name of the model, one of ``list_models()`` for a classifier."""
        return f'{self.family}-{self.arch}'


@cache
def all_entries() -> tuple[Entry, ...]:
    """Return all entries of the manifest, those of mmsparse first."""
    content = json.loads(MANIFEST.read_text(encoding='utf-8'))
    return tuple(Entry(**{**entry, 'urls': tuple(entry['urls'])}) for entry in content)


def entries(task: str | None = None, pattern: str = '*') -> list[Entry]:
    """Return entries of the manifest.

    Args:
        task: ``classification``, ``detection`` or ``segmentation``; None for all.
        pattern: Shell pattern of the name or model.

    Returns:
        The entries in the order of the manifest. ``entry.sha256 is not None`` for
        those that :func:`~mmsparse.weights.locate` downloads without a question.
    """
    return [
        entry
        for entry in all_entries()
        if task in (None, entry.task)
        and (fnmatchcase(entry.name, pattern) or fnmatchcase(entry.model, pattern))
    ]


def find_entry(name: str) -> Entry:
    """Return the entry of this name, or the first one of this classifier.

    Those with a known hash come first. UsageError is raised without one, with the
    closest names.
    """
    if named := [entry for entry in all_entries() if entry.name == name]:
        return named[0]
    classifiers = entries(CLASSIFICATION)
    found = [entry for entry in classifiers if entry.model == name]
    if not found:
        raise UsageError(f'no weights of {name!r} are known; {closest(name)}')
    return min(found, key=lambda entry: entry.sha256 is None)


def closest(name: str) -> str:
    """Return the names closest to one that is not known, or those of all models."""
    classifiers = list(dict.fromkeys(x.model for x in entries(CLASSIFICATION)))
    known = [*classifiers, *(entry.name for entry in all_entries())]
    if close := get_close_matches(name, known):
        return f'did you mean {" or ".join(map(repr, close))}?'
    return f'known are {", ".join(classifiers)}'
