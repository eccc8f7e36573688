"""Install other frameworks on top of a stack, to test mmsparse in them.

They have a separate environment, because mmpretrain.models 1.2 cannot be imported next
to transformers 4.50 or later.
"""

import shutil
import sys
from pathlib import Path

from install.stack import Stack
from install.step import SHOW, Step, stop

PACKAGES = ('peft', 'segmentation-models-pytorch', 'transformers', 'ultralytics')
MODULES = ', '.join((*PACKAGES, 'mmsparse')).replace('-', '_')


def install_frameworks(stack: Stack) -> None:
    """Create the environment again, which sees the packages of the stack's base."""
    if not stack.base.python.exists():
        stop('the frameworks need .venv: run make install first')
    shutil.rmtree(stack.venv, ignore_errors=True)
    stack.temporary.mkdir(parents=True)
    with Step('environment on top of .venv', stack.venv) as step:
        python = Path(sys.executable).resolve()
        step.run(python, '-m', 'venv', '--without-pip', stack.venv)
        site = 'lib/python{}.{}/site-packages'.format(*sys.version_info[:2])
        line = f'import site; site.addsitedir({str(stack.base.venv / site)!r})\n'
        Path(stack.venv, site, 'base.pth').write_text(line)
    with Step(', '.join(PACKAGES), stack.venv) as step:
        pins = [word for file in stack.pins for word in ('-c', file)]
        step.pip('install', *pins, SHOW, *PACKAGES)
    with Step('test of the imports', stack.venv) as step:
        # ultralytics writes settings when it is imported.
        settings = str(stack.temporary)
        code = f'import {MODULES}'
        step.run(stack.python, '-I', '-c', code, YOLO_CONFIG_DIR=settings)
    shutil.rmtree(stack.temporary)
