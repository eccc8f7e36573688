"""What `make help` lists, and the check of words in `make lint`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_help_lists_every_target_and_command_once():
    command = ['make', 'help', f'PYTHON={sys.executable}']
    printed = subprocess.check_output(command, cwd=ROOT, text=True)

    listed = re.findall(r'^(make \w+|tools/\S+) +\S', printed, re.M)
    targets = re.findall(r'^\.PHONY: (.*)', (ROOT / 'Makefile').read_text(), re.M)
    commands = [path.name for path in (ROOT / 'tools').glob('[!_]*.*')]
    assert sorted(listed) == sorted(
        [f'make {name}' for name in targets[0].split()]
        + [f'tools/{name}' for name in commands]
    )


def test_words_to_avoid_are_reported_with_the_standard_term(tmp_path):
    word = 'Pic' + 'tures'
    (tmp_path / 'page.md').write_text(f'An image.\nTwo {word}.\nA lookup, layers.\n')
    subprocess.run(['git', 'init', '--quiet'], cwd=tmp_path, check=True)
    subprocess.run(['git', 'add', '.'], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, ROOT / '.ci' / 'check_words.py'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stdout == f'page.md:2: {word}: write image\n'
