"""Run the command ``mmsparse`` as ``python -m mmsparse``."""

from mmsparse.cli import main

if __name__ == '__main__':
    main()
