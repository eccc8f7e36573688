"""Sphinx settings: the site has every Markdown page of the repository.

The repository's root is the source directory, so that links between pages and to files
are the same on the site and in the repository.
"""

import re
from pathlib import Path
from typing import Any

from docutils.nodes import Element, SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]

project = 'mmsparse'
root_doc = 'docs/index'
extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
include_patterns = ['*.md', 'docs/**', 'configs/*/README.md', 'projects/*/README.md']
exclude_patterns = ['.*', 'build', 'data', 'work_dirs', 'checkpoints']

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3  # the anchors that GitHub makes
highlight_language = 'none'  # commands and their output

autodoc_default_options = {'members': True, 'imported-members': True}
autodoc_member_order = 'groupwise'
autodoc_typehints = 'signature'
python_maximum_signature_line_length = 90
add_module_names = False

html_theme = 'furo'
html_title = 'mmsparse'
html_extra_path = ['site']  # redirects the site's root to its first page
html_static_path = ['static']
html_css_files = ['style.css']
html_js_files = [('filter.js', {'defer': 'defer'})]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_math_renderer = 'mathml'

FOLDER = re.compile(r'(?<=\]\()[\w./-]+(?=\))')


def setup(app: Sphinx) -> None:
    app.connect('source-read', link_readmes)
    app.connect('autodoc-skip-member', skip_fields)
    app.add_html_math_renderer('mathml', (write_inline, None), (write_block, None))


def link_readmes(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links to folders into links to their READMEs, as GitHub shows them."""
    here = (ROOT / page).parent

    def readme(link: re.Match) -> str:
        inside = here / link[0] / 'README.md'
        return f'{link[0]}/README.md' if inside.is_file() else link[0]

    source[0] = FOLDER.sub(readme, source[0])


def skip_fields(app: Sphinx, what: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leave out the fields of named tuples: the class docstring has them."""
    return str(member.__doc__).startswith('Alias for field') or None


def write_inline(translator: Any, node: Element) -> None:
    """Write MathML, which needs no script from another site."""
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def write_block(translator: Any, node: Element) -> None:
    formula = tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise SkipNode
