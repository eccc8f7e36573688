"""A stack: packages that are installed together, and the files of its environment."""

import os
import re
import sys
import sysconfig
from pathlib import Path

from install.rows import ROWS, Row

STACKS = ('oldest', 'onedl', 'openmmlab')
OVERLAY = 'frameworks'  # on top of openmmlab
NAMES = sorted({*STACKS, OVERLAY, *ROWS})  # each is an environment
ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')


class Stack:
    """Packages that are installed together, at which versions, and where.

    Args:
        name: One of NAMES: a stack, what is installed on top of one, or a row of the
            matrix.
        root: Folder of the project.
        cache: Folder of compiled wheels.
        venv: Folder of the environment, .venv or .venv-NAME of the project by default.
        versions: Of packages that differ from the stack's constraints, those of the
            row by default.
    """

    def __init__(
        self,
        name: str,
        root: Path = ROOT,
        cache: Path = CACHE,
        venv: Path | None = None,
        versions: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        row = ROWS.get(name) or Row('', name, {})
        onedl = row.stack == 'onedl'
        self.extra = 'onedl' if onedl else 'openmmlab'  # of setup.py
        self.mmcv = 'onedl-mmcv' if onedl else 'mmcv'  # on the package index
        self.root = root
        self.versions = row.versions if versions is None else versions
        # The stack whose packages an overlay sees, too.
        self.base = Stack('openmmlab', root, cache) if name == OVERLAY else None
        own = root / f'constraints{suffix(row.stack)}.txt'
        self.pins = (*(self.base.pins if self.base else ()), own)
        self.venv = venv or root / f'.venv{suffix(name)}'
        # Those of the stack, or a copy with the versions of the row.
        self.constraints = self.venv / own.name if self.versions else own
        self.python = self.venv / 'bin' / 'python'
        self.temporary = self.venv / 'tmp'
        # The fingerprint of a completed installation.
        self.stamp = self.venv / '.mmsparse-installed'
        self.wheels = cache / 'mmsparse' / 'wheels'

    def read_pins(self) -> str:
        """Return the lines of the constraints."""
        text = self.pins[-1].read_text()
        for package, version in self.versions.items():
            text = re.sub(rf'^{package}==.*\n', '', text, flags=re.M)
            text += f'{package}=={version}\n' if version else ''
        return text

    def pin(self, package: str) -> str:
        """Return a package's version: in the constraints, or else the installed one.

        It is empty if the newest is wanted and none is installed.
        """
        if pinned := re.search(rf'^{package}==(\S+)', self.read_pins(), re.M):
            return pinned[1]
        installed = self.venv.glob(f'lib/*/site-packages/{package}-*.dist-info')
        return next((x.stem.removeprefix(f'{package}-') for x in installed), '')

    def store(self, device: str) -> Path:
        """Return the folder of mmcv compiled for 'cpu' or, for example, 'cuda9.0'."""
        packages = f'{self.mmcv}{self.pin(self.mmcv)}-torch{self.pin("torch")}'
        python = 'cp{}{}'.format(*sys.version_info[:2])
        platform = sysconfig.get_platform().replace('-', '_')
        return self.wheels / f'{packages}-{python}-{platform}-{device}'

    def is_compiled(self) -> bool:
        """Return whether mmcv was compiled before, for any device."""
        return any(self.wheels.glob(f'{self.store("*").name}/*.whl'))


def suffix(name: str) -> str:
    """Return how the files of a stack end; the default has nothing."""
    return '' if name == 'openmmlab' else f'-{name}'
