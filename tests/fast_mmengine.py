"""mmengine without what takes longer than a short training, where this is imported.

For every base from a library, it parses this file and the metafiles of all models again
and imports pkg_resources again. It formats a config five times for a training, and
collects garbage for every dataset.
"""

import ast
import copy
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from mmengine.config import config, utils
from mmengine.dataset import base_dataset
from mmengine.utils import get_installed_path


def check_code(text, **style):
    """Parse the text of a config in place of formatting it."""
    ast.parse(text)
    return text, True


parse = config.Config._file2dict
parse_once = cache(parse)


def parse_config(filename, *options, **more):
    """Parse a config; those of installed libraries do not change."""
    if Path(filename).is_relative_to(sys.prefix):
        return copy.deepcopy(parse_once(filename, *options, **more))
    return parse(filename, *options, **more)


config.FormatCode = check_code
config.Config._file2dict = staticmethod(parse_config)
base_dataset.gc = SimpleNamespace(collect=lambda: 0)
config.is_installed = cache(config.is_installed)
utils.load = cache(utils.load)


def fill_caches(*libraries):
    """Look up libraries and parse their metafiles."""
    for library in libraries:
        config.is_installed(library)
        with suppress(ValueError):  # no config has this name
            utils._get_cfg_metainfo(get_installed_path(library), '')
