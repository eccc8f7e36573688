"""A stack: packages that are installed together, and the files of its environment."""

import os
import re
import sys
import sysconfig
from pathlib import Path

STACKS = ('oldest', 'onedl', 'openmmlab')
OVERLAY = 'frameworks'  # on top of openmmlab
ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')


class Stack:
    """Packages that are installed together, at which versions, and where."""

    def __init__(self, name: str, root: Path = ROOT, cache: Path = CACHE) -> None:
        suffix = '' if name == 'openmmlab' else f'-{name}'
        self.extra = 'onedl' if name == 'onedl' else 'openmmlab'  # of setup.py
        self.mmcv = 'onedl-mmcv' if name == 'onedl' else 'mmcv'  # on the package index
        self.root = root
        self.constraints = root / f'constraints{suffix}.txt'
        # The stack whose packages an overlay sees, too.
        self.base = Stack('openmmlab', root, cache) if name == OVERLAY else None
        self.pins = (*(self.base.pins if self.base else ()), self.constraints)
        self.venv = root / f'.venv{suffix}'
        self.python = self.venv / 'bin' / 'python'
        self.temporary = self.venv / 'tmp'
        # The fingerprint of a completed installation.
        self.stamp = self.venv / '.mmsparse-installed'
        self.wheels = cache / 'mmsparse' / 'wheels'

    def pin(self, package: str) -> str:
        """Return the version of a package in the constraints."""
        pins = self.constraints.read_text()
        return re.search(rf'^{package}==(\S+)', pins, re.M)[1]

    def store(self, device: str) -> Path:
        """Return the folder of mmcv compiled for 'cpu' or, for example, 'cuda9.0'."""
        packages = f'{self.mmcv}{self.pin(self.mmcv)}-torch{self.pin("torch")}'
        python = 'cp{}{}'.format(*sys.version_info[:2])
        platform = sysconfig.get_platform().replace('-', '_')
        return self.wheels / f'{packages}-{python}-{platform}-{device}'

    def is_compiled(self) -> bool:
        """Return whether mmcv was compiled before, for any device."""
        return any(self.wheels.glob(f'{self.store("*").name}/*.whl'))
