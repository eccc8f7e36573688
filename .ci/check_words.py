"""Check that code and pages use the standard terms of the field."""

import re
import subprocess
import sys
from pathlib import Path

# Regular expressions of words to avoid, and what to write instead.
TERMS = {
    r'pictures?': 'image',
    r'told|tell(s|ing)?': 'raise, report, print or return',
    r'mend(s|ed|ing)?': 'fix',
    r'multiply-adds?': 'MACs',
    r'(go(es)?|going|went) on': 'resume or continue',
    r'ours': "mmsparse's",
    r'no number': 'NaN or infinite',
    r'so many at a time': 'chunked',
    r'strips': 'tiled, or removes',
    r'take_rows': 'gather_tokens',
    r'put_rows': 'scatter_tokens',
    r'recomputed|anew': 'checkpointed, or again',
    r'look(s|ed|ing)?(?! ?(up|like))|LookHook': 'attention map, or inspect',
    r'(what|that) there is': 'a noun',
    r'asked for': 'requested or given',
    r'stands( in)?|lies|(?<!_)lay(?! out|[\d{\\])': 'is',
    r'rooms?': 'space or module',
    r'twins?': 'equivalent or copy',
    r'beside': 'next to, or in addition to',
    r'of (its|their) own': 'separate',
    r'kept whole': 'complete',
    r'trainings': 'training runs',
    r'(?<![.])kinds': 'types',
    r'chance': 'noise',
    r'akin': 'similar',
}
PATTERN = re.compile(rf'(?<![A-Za-z])({"|".join(TERMS)})(?![A-Za-z])', re.IGNORECASE)
FILES = (
    '*.py',
    '*.md',
    '*.html',
    '*.js',
    '*.css',
    '*.yml',
    '*.toml',
    '*.sh',
    'Makefile',
)


def main() -> int:
    """Print the words to avoid with their lines; return the exit status."""
    listed = subprocess.check_output(['git', 'ls-files', '--', *FILES], text=True)
    lines = [
        (name, number, line)
        for name in listed.splitlines()
        if name != '.ci/check_words.py'
        for number, line in enumerate(Path(name).read_text().splitlines(), start=1)
    ]
    found = [
        (*place, word[0]) for *place, line in lines for word in PATTERN.finditer(line)
    ]
    for name, number, word in found:
        term = next(x for pattern, x in TERMS.items() if re.match(pattern, word, re.I))
        print(f'{name}:{number}: {word}: write {term}')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
