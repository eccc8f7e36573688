"""Run the tests that need other frameworks in the environment of `make frameworks`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
OFFLINE = dict(HF_HUB_OFFLINE='1', YOLO_OFFLINE='true', YOLO_AUTOINSTALL='false')


@pytest.fixture
def python():
    """The Python of .venv-frameworks, next to the environment that runs the tests."""
    python = Path(f'{sys.prefix}-frameworks', 'bin', 'python')
    if not python.exists():
        pytest.skip(f'{python} is missing: make frameworks')
    return python


def test_the_tests_with_other_frameworks_pass(python, tmp_path):
    files = [*FOLDER.glob('overlay_*.py'), *FOLDER.glob('test_lora.py')]
    options = ('-q', '-p', 'no:cacheprovider', '-p', 'no:xdist')
    command = [python, '-m', 'pytest', *options, f'--basetemp={tmp_path}/tmp', *files]
    settings = dict(OFFLINE, YOLO_CONFIG_DIR=str(tmp_path), PYTEST_ADDOPTS='')

    done = subprocess.run(
        command,
        cwd=FOLDER.parents[1],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert ' skipped' not in done.stdout, done.stdout[-2000:]
