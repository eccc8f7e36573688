"""Write a config in pure Python: types are classes, and default_scope is None."""

import importlib
import inspect

from mmengine.config import Config
from mmengine.registry import Registry


def write_pure_python(cfg, folder):
    """Write a config as two files, one of which reads the other; return its path.

    Args:
        cfg: Config of mmdet, mmseg or mmpretrain, with the names of types as strings.
        folder: Folder for ``mine.py`` and its base, ``data.py``.
    """
    classes = {}
    settings = {
        key: _source(value, cfg.default_scope, classes)
        for key, value in Config.to_dict(cfg).items()
    }
    settings['default_scope'] = 'None'
    imports = [f'from {x.__module__} import {name}' for name, x in classes.items()]
    files = {'data.py': imports, 'mine.py': [READ_BASE, *imports]}
    for key, value in settings.items():
        is_data = key.endswith(('_dataloader', '_evaluator'))
        files['data.py' if is_data else 'mine.py'].append(f'{key} = {value}')
    for name, lines in files.items():
        (folder / name).write_text('\n'.join([*lines, '']))
    return folder / 'mine.py'


READ_BASE = """\
from mmengine.config import read_base

with read_base():
    from .data import *
"""


def _source(value, host, classes):
    if isinstance(value, dict):
        pairs = (
            f'{key!r}: {(_type if key == "type" else _source)(x, host, classes)}'
            for key, x in value.items()
            if key != '_scope_'
        )
        return f'{{{", ".join(pairs)}}}'
    if isinstance(value, (list, tuple)):
        items = ''.join(f'{_source(x, host, classes)}, ' for x in value)
        return f'[{items}]' if isinstance(value, list) else f'({items})'
    return repr(value)


def _type(name, host, classes):
    """Return the name of the class of a type, and collect it; or a string."""
    scope, _, plain = name.rpartition('.')
    scope = scope or host
    registries = vars(importlib.import_module(f'{scope}.registry')).values()
    found = [
        x.get(plain) for x in registries if isinstance(x, Registry) and x.scope == scope
    ]
    found = [x for x in found if inspect.isclass(x)]
    if not found:
        return repr(name)
    return classes.setdefault(found[0].__name__, found[0]).__name__
