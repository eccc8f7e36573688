"""Print installed versions and their conflicts, with the commands to fix them."""

from _cli import run

from mmsparse.doctor import main

if __name__ == '__main__':
    run(main)
