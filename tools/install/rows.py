"""The matrix: environments in which the core tests run, tools/matrix.py.

Together they have each Python from 3.10 to 3.13, torch 2.1, 2.6, 2.12 and the newest,
numpy 1.26 and 2, and the packages of OpenMMLab and OneDL.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """An environment.

    Args:
        python: Version of Python.
        stack: Stack whose packages are installed.
        versions: Of packages that differ from the stack's constraints; an empty one
            means the newest.
    """

    python: str
    stack: str
    versions: dict[str, str]


# A row with the name of a stack has that stack's own environment.
ROWS = {
    'oldest': Row('3.10', 'oldest', {}),
    'torch-2.6': Row(
        '3.12',
        'openmmlab',
        {'torch': '2.6.0', 'torchvision': '0.21.0', 'sympy': '1.13.1'},
    ),
    'openmmlab': Row('3.11', 'openmmlab', {}),
    'python-3.13': Row('3.13', 'openmmlab', {}),
    'onedl': Row('3.11', 'onedl', {}),
    'newest': Row('3.13', 'openmmlab', {'torch': '', 'torchvision': ''}),
}
