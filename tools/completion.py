"""Print a script that completes the commands of mmsparse in your shell.

bash:  echo 'eval "$(mmsparse completion bash)"' >> ~/.bashrc
zsh:   echo 'eval "$(mmsparse completion zsh)"' >> ~/.zshrc   (after compinit)
fish:  echo 'mmsparse completion fish | source' >> ~/.config/fish/config.fish

Completing imports nothing: the script has the names of all commands, options and
configs.
"""

import argparse
from pathlib import Path

from _cli import run

SCRIPTS = Path(__file__).parent / 'completion'


def main() -> None:
    script = SCRIPTS / f'mmsparse.{parse_args().shell}'
    print(script.read_text(encoding='utf-8'), end='')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('shell', choices=('bash', 'zsh', 'fish'))
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
