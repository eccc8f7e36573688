"""Write tools/completion/mmsparse.* for bash, zsh and fish by shtab.

Run it after a change of a command's options, or of the names of configs. With --check,
nothing is written, and the exit status is 1 if a script is outdated.
"""

import argparse
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import shtab

from mmsparse.cli import build_parser, find_commands, read_summary
from mmsparse.zoo import read_index

SCRIPTS = Path(__file__).resolve().parents[1] / 'tools' / 'completion'
CONFIGS = ' '.join(read_index())
CONFIG = dict.fromkeys(('bash', 'zsh', 'fish'), '_mmsparse_configs')
CONFIG['fish'] = '(_mmsparse_configs)'
PREAMBLES = {
    'bash': f"""\
_mmsparse_configs() {{
  compgen -W '{CONFIGS}' -- "$1"
  _shtab_compgen_files "$1"
}}""",
    'zsh': f"""\
_mmsparse_configs() {{
  _alternative 'configs:config:({CONFIGS})' 'files:file:_files'
}}""",
    'fish': f"""\
function _mmsparse_configs
  printf '%s\\n' {CONFIGS}
  __fish_complete_path (commandline -ct)
end""",
}


class ParserFound(Exception):  # noqa: N818 - no error
    """Ends a command when it parses its arguments; the parser is in ``args``."""


def main() -> int:
    """Write the scripts, or compare them; return the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument('--check', action='store_true', help='write nothing')
    check = arguments.parse_args().check
    parser = whole_parser()
    outdated = []
    for shell, preamble in PREAMBLES.items():
        path = SCRIPTS / f'mmsparse.{shell}'
        script = shtab.complete(parser, shell, preamble=preamble).rstrip() + '\n'
        if not path.is_file() or path.read_text() != script:
            outdated.append(path.name)
            if not check:
                path.write_text(script)
                print(path)
    if check and outdated:
        print(f'outdated: {", ".join(outdated)}; run python {sys.argv[0]}')
    return int(check and bool(outdated))


def whole_parser() -> argparse.ArgumentParser:
    """Return the parser of ``mmsparse`` with those of all commands below it."""
    commands = find_commands()
    parser = build_parser(commands)
    below = parser.add_subparsers(parser_class=lambda prog, path: parser_of(path))
    for name, path in commands.items():
        below.add_parser(name, help=read_summary(path), path=path)
    return parser


def parser_of(path: Path) -> argparse.ArgumentParser:
    """Return the parser of a command, whose values are completed."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise ParserFound(parser)

    with (
        patch.object(argparse.ArgumentParser, 'parse_args', stop),
        patch.object(sys, 'argv', [path.name]),
        patch.object(sys, 'path', [str(path.parent), *sys.path]),
    ):
        try:
            runpy.run_path(str(path), run_name='__main__')
        except ParserFound as found:
            parser = found.args[0]
    parser.description = read_summary(path)
    complete_values(parser)
    return parser


def complete_values(parser: argparse.ArgumentParser) -> None:
    """Complete config names, and files for other values without type and choices."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                complete_values(command)
        elif action.dest in ('config', 'configs'):
            action.complete = CONFIG
        elif action.nargs != 0 and not action.choices and action.type in (None, Path):
            action.complete = shtab.FILE


if __name__ == '__main__':
    sys.exit(main())
