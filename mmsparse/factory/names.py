"""Names of models: ``<family>-<arch>``."""

from difflib import get_close_matches
from fnmatch import fnmatchcase

from mmsparse.models.backbones import BACKBONES
from mmsparse.weights import entries


def list_models(pattern: str = '*', pretrained: bool = False) -> list[str]:
    """Return the sorted names ``<family>-<arch>`` of backbones and classifiers.

    Args:
        pattern: Shell pattern of the names, for example ``dat*``.
        pretrained: Whether to return only those that ``pretrained=True`` finds weights
            for: entries of the manifest with a known hash.

    Returns:
        The names.
    """
    names = {
        f'{family}-{arch}'
        for family, backbone in BACKBONES.items()
        for arch in backbone.arch_settings
    }
    if pretrained:
        names &= {x.model for x in entries('classification') if x.sha256}
    return sorted(name for name in names if fnmatchcase(name, pattern))


def split_name(name: str) -> tuple[str, str]:
    """Return family and arch; raise ValueError for an unknown name."""
    family, _, arch = str(name).partition('-')
    if family in BACKBONES and arch in BACKBONES[family].arch_settings:
        return family, arch
    names = list_models()
    if close := get_close_matches(str(name).replace('_', '-').lower(), names):
        meant = f'did you mean {" or ".join(map(repr, close))}?'
        raise ValueError(f'name must be one of list_models(); got {name!r}: {meant}')
    raise ValueError(f'name must be one of {names}; got {name!r}.')
