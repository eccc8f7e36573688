"""Run the tests that need other frameworks in the environment of `make frameworks`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FILES = [*FOLDER.glob('overlay_*.py'), *FOLDER.glob('test_lora.py')]
OFFLINE = dict(
    HF_HUB_OFFLINE='1',
    YOLO_OFFLINE='true',
    YOLO_AUTOINSTALL='false',
    PYTEST_ADDOPTS='',
)


@pytest.fixture
def python():
    """The Python of .venv-frameworks, next to the environment that runs the tests."""
    python = Path(f'{sys.prefix}-frameworks', 'bin', 'python')
    if not python.exists():
        pytest.skip(f'{python} is missing: make frameworks')
    return python


@pytest.mark.parametrize('file', sorted(FILES), ids=lambda file: file.stem)
def test_the_tests_pass_next_to_a_framework(file, python, tmp_path):
    options = ('-q', '-p', 'no:cacheprovider', '-p', 'no:xdist')
    command = [python, '-m', 'pytest', *options, f'--basetemp={tmp_path}/tmp', file]
    variables = os.environ | OFFLINE | dict(YOLO_CONFIG_DIR=str(tmp_path))

    done = subprocess.run(
        command, cwd=FOLDER.parents[1], env=variables, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert ' passed' in done.stdout
    assert ' skipped' not in done.stdout, done.stdout[-2000:]
