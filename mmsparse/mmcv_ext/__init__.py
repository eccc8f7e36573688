"""Let mmdet and mmseg be imported without mmcv's compiled operators.

mmcv-lite, and mmcv that was built without a compiler, lack the extension ``mmcv._ext``,
so that ``mmcv.ops`` and whatever imports it fail. A substitute takes its place.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

EXTENSION = 'mmcv._ext'
SUBSTITUTE = Path(__file__).with_name('operators.py')


class SubstituteFinder(MetaPathFinder):
    """Find the substitute of mmcv's extension, where no other finder finds it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        """Return the spec of the substitute; None for all other modules."""
        if fullname != EXTENSION:
            return None
        return spec_from_file_location(fullname, SUBSTITUTE)


def substitute_extension() -> None:
    """Let ``mmcv._ext`` be imported from the substitute if mmcv does not have it."""
    if not any(isinstance(finder, SubstituteFinder) for finder in sys.meta_path):
        sys.meta_path.append(SubstituteFinder())


def lacks_operators() -> bool:
    """Return whether mmcv's operators were imported, and are the substitute."""
    return getattr(sys.modules.get(EXTENSION), '__file__', '') == str(SUBSTITUTE)
