"""Draw class names of any script."""

import sys
from collections.abc import Iterable

import matplotlib

from mmsparse.visualization.fonts import choose_fonts


def use_fonts_for(names: Iterable[str]) -> list[str]:
    """Let matplotlib draw names with installed fonts that have their characters.

    A ``$`` starts no formula. Characters that no font has are reported in a line, and
    drawn as boxes.

    Args:
        names: The names.

    Returns:
        Families of the fonts, for text that names a family.
    """
    families, missing = choose_fonts(names)
    if missing:
        examples = ''.join(sorted(missing)[:10])
        print(
            f'no installed font has {examples}, drawn as boxes; install one, for '
            'example by apt-get install fonts-noto-cjk',
            file=sys.stderr,
        )
    matplotlib.rcParams.update({'font.family': families, 'text.parse_math': False})
    return families
