"""The stacks: packages that are installed together, and the files of each."""

import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')


@dataclass(frozen=True)
class Stack:
    """Packages that are installed together, at which versions, and where."""

    extra: str  # of setup.py
    mmcv: str  # name of mmcv on the package index
    constraints_file: str
    folder: str  # of the environment
    root: Path = ROOT
    cache: Path = CACHE

    @property
    def constraints(self) -> Path:
        return self.root / self.constraints_file

    @property
    def venv(self) -> Path:
        return self.root / self.folder

    @property
    def python(self) -> Path:
        return self.venv / 'bin' / 'python'

    @property
    def stamp(self) -> Path:
        """File with the fingerprint of a completed installation."""
        return self.venv / '.mmsparse-installed'

    @property
    def temporary(self) -> Path:
        return self.venv / 'tmp'

    def pin(self, package: str) -> str:
        """Return the version of a package in the constraints."""
        pins = self.constraints.read_text()
        return re.search(rf'^{package}==(\S+)', pins, re.M)[1]

    def wheels(self, device: str) -> Path:
        """Return the folder of mmcv compiled for 'cpu' or, for example, 'cuda9.0'."""
        packages = f'{self.mmcv}{self.pin(self.mmcv)}-torch{self.pin("torch")}'
        python = 'cp{}{}'.format(*sys.version_info[:2])
        platform = sysconfig.get_platform().replace('-', '_')
        folder = f'{packages}-{python}-{platform}-{device}'
        return self.cache / 'mmsparse' / 'wheels' / folder


STACKS = {
    'openmmlab': Stack('openmmlab', 'mmcv', 'constraints.txt', '.venv'),
    'oldest': Stack('openmmlab', 'mmcv', 'constraints-oldest.txt', '.venv-oldest'),
    'onedl': Stack('onedl', 'onedl-mmcv', 'constraints-onedl.txt', '.venv-onedl'),
}
