"""Choose fonts that have the characters of class names."""

from collections.abc import Iterable, Iterator
from functools import cache

from matplotlib.font_manager import FontEntry, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

DEFAULT = 'DejaVu Sans'  # part of matplotlib
PLACEHOLDERS = 'Last Resort'  # a font of boxes


def choose_fonts(names: Iterable[str]) -> tuple[list[str], set[str]]:
    """Return families of fonts, the default first, and the characters none of them has.

    Each adds the most characters of ``names`` to those before it.
    """
    families = [DEFAULT]
    missing = {x for name in names for x in name if not x.isspace()}
    missing -= _characters(fontManager.findfont(DEFAULT))
    candidates = {x.name: x for x in _installed()} if missing else {}
    while candidates and missing:
        best = max(
            candidates.values(),
            key=lambda font: len(missing & _characters(font.fname)),
        )
        if not (added := missing & _characters(best.fname)):
            break
        families.append(best.name)
        missing -= added
    return families, missing


def _installed() -> Iterator[FontEntry]:
    """Yield upright fonts, of each family the one nearest to a regular weight last."""
    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():  # installed after matplotlib has listed them
        if path not in known:
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError):
                continue
    upright = [font for font in fontManager.ttflist if font.style == 'normal']
    for font in sorted(upright, key=_weight, reverse=True):
        if not font.name.startswith(PLACEHOLDERS):
            yield font


def _weight(font: FontEntry) -> int:
    """Return how far a font is from a regular weight."""
    return abs(font.weight - 400) if isinstance(font.weight, int) else 0


@cache
def _characters(path: str) -> frozenset[str]:
    """Return the characters of a font file; none of a font that cannot be scaled."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
