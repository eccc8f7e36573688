"""The command ``mmsparse``: its sub-commands are the programs in ``tools``.

It reads their names and summaries from the files, and imports none before it runs it.
"""

import argparse
import ast
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from mmsparse import __version__
from mmsparse._paths import ROOT

PROGRAM = 'mmsparse '  # before the name of a command
DESCRIPTION = 'Train, run, inspect and convert sparse-attention vision models.'
EPILOG = """\
CONFIG is a file, or the name of a config of mmsparse. mmsparse COMMAND --help lists
the arguments of a command; mmsparse completion --help completes them in your shell."""
# Commands and their files, in the order of the help. Other files of tools follow under
# their names, except those that need a clone.
COMMANDS = {
    'train': 'train',
    'test': 'test',
    'infer': 'infer',
    'visualize': 'visualize',
    'demo': 'demo',
    'weights': 'weights',
    'flops': 'get_flops',
    'benchmark': 'benchmark',
    'ablate': 'ablate',
    'compare': 'compare',
    'convert': 'convert_checkpoint',
    'convert-annotations': 'convert_annotations',
    'prepare-digits': 'prepare_digits',
    'prepare-data': 'prepare_data',
    'export': 'export_onnx',
    'publish': 'publish_model',
}
FOR_CLONES = ('install', 'matrix', 'quickstart', 'zoo_tables', 'weights_manifest')


def main() -> None:
    """Run the sub-command that the command line names."""
    commands, arguments = find_commands(), sys.argv[1:]
    if not arguments or arguments[0].startswith('-'):
        parser = build_parser(commands)
        parser.parse_args(arguments or ['--help'])
    name, *arguments = arguments
    if name not in commands:
        sys.exit(f'error: mmsparse has no command {name!r}{_suggest(name, commands)}')
    try:
        run_file(commands[name], [f'{PROGRAM}{name}', *arguments])
    except KeyboardInterrupt:  # during the imports of a command
        sys.exit('interrupted')


def find_commands() -> dict[str, Path]:
    """Return the file of each command, in the order of the help."""
    paths = {path.stem: path for path in sorted((ROOT / 'tools').glob('[a-z]*.py'))}
    known = {name: paths.pop(stem) for name, stem in COMMANDS.items() if stem in paths}
    others = {command_name(x): paths[x] for x in paths if x not in FOR_CLONES}
    return known | others


def command_name(tool: str) -> str:
    """Return the command of a file of tools, which is given without its suffix."""
    names = {stem: name for name, stem in COMMANDS.items()}
    return names.get(tool, tool.replace('_', '-'))


def read_summary(path: Path) -> str:
    """Return the first line of a file's docstring, without its period."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    return docstring.partition('\n')[0].removesuffix('.')


def build_parser(commands: dict[str, Path]) -> argparse.ArgumentParser:
    """Build the parser whose help lists the commands."""
    rows = (f'  {name:20} {read_summary(path)}' for name, path in commands.items())
    parser = argparse.ArgumentParser(
        'mmsparse',
        usage='mmsparse [--help] [--version] COMMAND ...',
        description='\n'.join([DESCRIPTION, '', 'commands:', *rows]),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f'mmsparse {__version__}'
    parser.add_argument(
        '--version', action='version', version=version, help='show the version'
    )
    return parser


def run_file(path: Path, argv: list[str]) -> None:
    """Run a Python file as a program, with the folder of its helpers on the path.

    Args:
        path: The file.
        argv: Name of the program, and its arguments.
    """
    program = ModuleType('__main__')
    program.__file__ = str(path)
    sys.modules['__main__'] = program  # pickle looks up its classes there
    sys.argv, sys.path[:0] = argv, [str(path.parent)]
    exec(compile(path.read_bytes(), path, 'exec'), vars(program))


def _suggest(name: str, commands: dict[str, Path]) -> str:
    """Return the commands with similar names, as the end of an error."""
    names = {path.stem: known for known, path in commands.items()}
    names |= {known: known for known in commands}
    close = {names[x]: None for x in get_close_matches(name, names)}
    return f'; did you mean {" or ".join(close)}?' if close else '; see mmsparse --help'
