"""Weights by name: a manifest, a cache, downloads and repositories of the hub.

- :func:`entries` lists the manifest, ``weights.json``; it reads one small file.
- :func:`locate` returns the local file of a path, a URL, ``hf-hub:owner/name`` or an
  entry of the manifest, and downloads it first if need be.
- :class:`Entry` is an entry of the manifest.
"""

from mmsparse.weights.locate import locate
from mmsparse.weights.manifest import Entry, entries

__all__ = ['Entry', 'entries', 'locate']
