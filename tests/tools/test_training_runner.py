"""The process of a training."""

import os
import signal
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[2] / 'tools'
COMMAND = """
import time
from training.runner import in_new_process

def train():
    print('started', flush=True)
    time.sleep(300)

if __name__ == '__main__':
    in_new_process(train)
"""


def test_a_training_ends_with_its_killed_command(tmp_path):
    script = tmp_path / 'command.py'
    script.write_text(COMMAND)
    variables = dict(os.environ, PYTHONPATH=f'{TOOLS}:{TOOLS.parent}')
    command = subprocess.Popen(
        [sys.executable, script], env=variables, stdout=subprocess.PIPE, text=True
    )
    assert command.stdout.readline() == 'started\n'

    command.send_signal(signal.SIGKILL)

    command.communicate(timeout=60)  # the output ends with the last process that has it
