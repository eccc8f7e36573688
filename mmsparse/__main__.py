"""Run the command ``mmsparse`` as ``python -m mmsparse``."""

from mmsparse.cli import main

main()
