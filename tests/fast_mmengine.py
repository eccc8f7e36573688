"""mmengine without what takes longer than a short training, where this is imported.

For a base of another library it parses the metafiles of all models there; for a training
it formats the config five times; and for a dataset it collects garbage.
"""

import ast
from functools import cache
from types import SimpleNamespace

from mmengine.config import config, utils
from mmengine.dataset import base_dataset


def check_code(text, **style):
    """Parse the text of a config in place of formatting it."""
    ast.parse(text)
    return text, True


config.FormatCode = check_code
base_dataset.gc = SimpleNamespace(collect=lambda: 0)
utils.load = cache(utils.load)
