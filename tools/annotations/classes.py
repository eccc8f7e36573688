"""Classes of a data set by id, from names, a file, or the annotations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmsparse.errors import UsageError

FILES = ('.txt', '.yaml', '.yml', '.json')


def read_classes(values: Sequence[str]) -> dict[int, str]:
    """Return names of classes by id, in this order, or raise UsageError.

    Args:
        values: Names; or one file: .txt with a name per line, .yaml of YOLO with
            ``names``, .json with COCO's ``categories``.

    Returns:
        Different names by their ids in label files of YOLO.
    """
    first = Path(values[0])
    from_file = len(values) == 1 and first.suffix.lower() in FILES
    try:
        classes = _read_file(first) if from_file else dict(enumerate(values))
    except FileNotFoundError:
        raise UsageError(f'--classes: no such file: {first}') from None
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f'--classes: {first} must have one name per line (.txt), names (.yaml), or '
            f'categories with id and name (.json): {error!r}'
        ) from error
    names = [name.strip() for name in classes.values()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or '' in names or repeated:
        raise UsageError(
            f'--classes: each class needs a name that no other has; got {names}'
        )
    return dict(zip(classes, names, strict=True))


def _read_file(path: Path) -> dict[int, str]:
    text = path.read_text(encoding='utf-8-sig')
    if path.suffix.lower() == '.txt':
        return dict(enumerate(text.rstrip().splitlines()))
    if path.suffix.lower() == '.json':
        categories = sorted(json.loads(text)['categories'], key=lambda x: x['id'])
        return {number: str(x['name']) for number, x in enumerate(categories)}
    names: Any = yaml.safe_load(text)['names']
    numbered = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in sorted(numbered)}
