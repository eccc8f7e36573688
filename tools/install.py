"""Install mmsparse, mmdet, mmseg and mmpretrain into a virtual environment.

`make install` runs this with the Python of the new environment, 3.10 to 3.13. Run it
again at any time: it resumes an interrupted installation, also inside the compilation
of mmcv, and does nothing once all is installed. The compiled mmcv is kept in
~/.cache/mmsparse/wheels for other clones. Every stack has its own environment: .venv,
.venv-onedl, .venv-oldest. With --mmcv, only mmcv is compiled, faster than by pip,
and installed next to the torch of the Python that runs this.
"""

import sys

if __name__ == '__main__':
    # Older Pythons must be able to read this file up to here.
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        needed = 'install: Python 3.10 to 3.13 is needed and {} is {}.{}'
        sys.exit(needed.format(sys.executable, *sys.version_info[:2]))
    from install.main import main

    main(__doc__)
