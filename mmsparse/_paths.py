"""Where the configs and commands of mmsparse are."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CLONE = _PACKAGE.parent
# The folder with configs, tools and model-index.yml; a wheel has a copy of them.
ROOT = _CLONE if (_CLONE / 'model-index.yml').is_file() else _PACKAGE / '.mim'
