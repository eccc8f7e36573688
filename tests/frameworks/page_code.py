"""The programs on the pages about other frameworks, and what they print."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / 'docs'


def blocks(page, heading=None):
    """Code blocks of a page, or of one of its sections, as (language, text)."""
    text = (DOCS / f'{page}.md').read_text()
    if heading is not None:
        text = re.split(r'^## ', text.split(f'\n## {heading}\n')[1], flags=re.M)[0]
    return re.findall(r'^```(\w*)\n(.*?)^```', text, re.M | re.S)


def run(page, heading, capsys, names=None):
    """Run the programs of a section in order; check what each should print."""
    names = {} if names is None else names
    found = blocks(page, heading)
    for i, (language, text) in enumerate(found):
        if language == 'python':
            capsys.readouterr()
            exec(text, names)
            printed = capsys.readouterr().out
            if i + 1 < len(found) and not found[i + 1][0]:
                assert printed == found[i + 1][1]
    return names
