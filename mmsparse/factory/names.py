"""Names of models: ``<family>-<arch>``."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from mmsparse.models.backbones import BACKBONES
from mmsparse.weights import entries
from mmsparse.weights.hub import SCHEME as HUB


def list_models(
    pattern: str | Sequence[str] = '*', pretrained: bool = False
) -> list[str]:
    """Return the sorted names ``<family>-<arch>`` of backbones and classifiers.

    Args:
        pattern: Shell pattern of the names, for example ``dat*``, or several.
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
    patterns = [pattern] if isinstance(pattern, str) else pattern
    return sorted(x for x in names if any(fnmatchcase(x, p) for p in patterns))


def split_name(name: str) -> tuple[str, str]:
    """Return family and arch; raise ValueError for an unknown name."""
    family, _, arch = str(name).partition('-')
    if family in BACKBONES and arch in BACKBONES[family].arch_settings:
        return family, arch
    names = list_models()
    plain = str(name).lower().replace('_', '-').removeprefix('mmsparse-')
    close = [plain] if plain in names else get_close_matches(plain, names)
    if close:
        meant = f'did you mean {" or ".join(map(repr, close))}?'
        raise ValueError(f'name must be one of list_models(); got {name!r}: {meant}')
    if plain.startswith(HUB):
        source = HUB + str(name)[len(HUB) :]
        raise ValueError(
            f'name must be that of a model, for example {names[0]!r}, with '
            f'pretrained={source!r}; got {name!r}.'
        )
    raise ValueError(f'name must be one of {names}; got {name!r}.')
