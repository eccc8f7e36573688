"""mmengine without what takes longer than a short training, where this is imported.

It parses the metafiles of all models of a library for every base from there, imports
pkg_resources again for every such base, formats a config five times for a training, and
collects garbage for every dataset.
"""

import ast
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

from mmengine.config import config, utils
from mmengine.dataset import base_dataset
from mmengine.utils import get_installed_path


def check_code(text, **style):
    """Parse the text of a config in place of formatting it."""
    ast.parse(text)
    return text, True


config.FormatCode = check_code
base_dataset.gc = SimpleNamespace(collect=lambda: 0)
config.is_installed = cache(config.is_installed)
utils.load = cache(utils.load)


def fill_caches(*libraries):
    """Look up libraries and parse their metafiles."""
    for library in libraries:
        config.is_installed(library)
        with suppress(ValueError):  # no config has this name
            utils._get_cfg_metainfo(get_installed_path(library), '')
