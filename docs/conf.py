"""Settings of Sphinx for the site: every Markdown page of the repository.

The root of the sources is the root of the repository, so that a link between pages, or
from a page to a file, is the same on the site and in the repository.
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
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
include_patterns = ['*.md', 'docs/**', 'configs/*/README.md', 'projects/*/README.md']
exclude_patterns = ['.*', 'build', 'data', 'work_dirs', 'checkpoints']

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3  # links to headings, as the repository's host makes them
highlight_language = 'none'  # of commands and their output

autodoc_default_options = {'members': True, 'imported-members': True}
autodoc_member_order = 'groupwise'
autodoc_typehints = 'signature'
python_maximum_signature_line_length = 90
add_module_names = False

html_theme = 'furo'
html_title = 'mmsparse'
html_extra_path = ['site']  # leads from the root of the site to its first page
html_static_path = ['static']
html_css_files = ['tables.css']
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
    """Let a link to a folder lead to its README, as the repository's host does."""
    here = (ROOT / page).parent

    def readme(link: re.Match) -> str:
        inside = here / link[0] / 'README.md'
        return f'{link[0]}/README.md' if inside.is_file() else link[0]

    source[0] = FOLDER.sub(readme, source[0])


def skip_fields(app: Sphinx, what: str, name: str, member: Any, *_: Any) -> bool | None:
    """Leave out the fields of named tuples, which the class describes."""
    return str(member.__doc__).startswith('Alias for field') or None


def write_inline(translator: Any, node: Element) -> None:
    """MathML, which browsers draw without a script from elsewhere."""
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def write_block(translator: Any, node: Element) -> None:
    formula = tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div style="overflow-x: auto">{formula}</div>\n')
    raise SkipNode
