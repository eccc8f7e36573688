"""The process of a training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
COMMAND = """
import os, time
from pathlib import Path
from training.runner import in_new_process

def train(folder):
    Path(folder, f'{os.getpid()}.started').touch()
    time.sleep(600)

if __name__ == '__main__':
    in_new_process(train, '.')
"""


def test_a_training_ends_with_its_killed_command(tmp_path):
    script = tmp_path / 'command.py'
    script.write_text(COMMAND)
    variables = dict(os.environ, PYTHONPATH=f'{TOOLS}:{TOOLS.parent}')
    command = subprocess.Popen([sys.executable, script], cwd=tmp_path, env=variables)
    while not (started := list(tmp_path.glob('*.started'))):
        assert command.poll() is None
        time.sleep(0.1)

    command.send_signal(signal.SIGKILL)
    command.wait()

    end = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(int(started[0].stem), 0)  # asks whether the process is there
            time.sleep(0.1)
