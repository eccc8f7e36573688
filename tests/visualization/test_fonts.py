"""Choosing fonts that have the characters of names."""

import pytest
from matplotlib.font_manager import FontEntry, fontManager

from mmsparse.visualization import fonts

STIX = fontManager.findfont('STIXGeneral')  # part of matplotlib


@pytest.fixture
def other():
    """Characters that STIX has and the default font does not."""
    default = fontManager.findfont(fonts.DEFAULT)
    return sorted(fonts._characters(STIX) - fonts._characters(default))


def test_the_default_font_has_latin_greek_and_cyrillic():
    assert fonts.choose_fonts(['Größe naïve', 'пять', 'λ']) == ([fonts.DEFAULT], set())


def test_a_font_with_the_missing_characters_is_added(other, monkeypatch, tmp_path):
    broken = tmp_path / 'broken.ttf'
    broken.write_bytes(b'no font')
    entries = [
        FontEntry(fname=str(broken), name='Broken'),
        FontEntry(fname=STIX, name='STIXGeneral'),
    ]
    monkeypatch.setattr(fonts, '_installed', lambda: entries)

    found = fonts.choose_fonts([f'a{other[0]}', f'{other[-1]}\U000e0fff'])

    assert found == ([fonts.DEFAULT, 'STIXGeneral'], {'\U000e0fff'})


def test_installed_fonts_are_upright_and_have_glyphs():
    installed = list(fonts._installed())

    assert 'STIXGeneral' in {font.name for font in installed}
    assert {font.style for font in installed} == {'normal'}
    assert not any('Last Resort' in font.name for font in installed)
