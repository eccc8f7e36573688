import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import utils as config_utils

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # Kernels for GPUs run as Python.


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def metafiles_read_once():
    """MMEngine reads all metafiles of a host for every base that a config has there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_utils, 'load', cache(config_utils.load))
        yield


@pytest.fixture(scope='session')
def small_digits(tmp_path_factory):
    """A folder to run commands in, with a few scenes at data/digits."""
    folder = tmp_path_factory.mktemp('digits')
    counts = ['--train-scenes', '16', '--val-scenes', '8', '--train-looks', '1']
    subprocess.run(
        [sys.executable, ROOT / 'tools' / 'prepare_digits.py', *counts],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope='session')
def run_tool():
    """Run a command of tools/ in a folder; return the finished process."""

    def run(tool, *args, cwd, check=True):
        command = [sys.executable, '-W', 'ignore', ROOT / 'tools' / tool, *args]
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check:
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    return run
