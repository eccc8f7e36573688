"""Processes of the quickstart, with functions instead of training runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from light_jobs import fail_or_wait, finish, make_jobs
from quickstart.runs import run_all
from quickstart.session import locked

from mmsparse.errors import UsageError

HERE, TOOLS = Path(__file__).parent, Path(__file__).parents[3] / 'tools'
SESSION = """\
import sys
from pathlib import Path
from light_jobs import fail_or_wait, make_jobs

if __name__ == '__main__':
    from quickstart.runs import run_all
    from quickstart.session import run_interruptible
    jobs = make_jobs(Path(sys.argv[1]), ['classification', 'detection'])

    def train():
        run_all(jobs.values(), fail_or_wait, 2, lambda *_: None)

    sys.exit(run_interruptible(train))
"""


def test_children_start_from_the_checkpoint_of_their_parent(tmp_path):
    jobs = make_jobs(tmp_path, ['segmentation'])
    heard = []

    def listen(job, message):
        heard.append((job.task, message))

    run_all(jobs.values(), finish, 2, listen)

    start = dict(iteration=0)
    pretrained = str(tmp_path / 'classification/iter_100.pth')
    assert heard == [
        ('classification', start),
        ('classification', dict(start, pretrained=None)),
        ('classification', {}),
        ('detection', start),
        ('detection', dict(start, pretrained=pretrained)),
        ('detection', {}),
    ]


def test_a_failure_is_one_line_and_stops_the_others(tmp_path):
    jobs = make_jobs(tmp_path, ['classification'])

    with pytest.raises(UsageError) as error:  # the other one would wait longer
        run_all(jobs.values(), fail_or_wait, 2, lambda *_: None)

    log = tmp_path / 'detection/train.log'
    assert str(error.value) == f'detection failed: ValueError: too bad; see {log}'


def test_an_interruption_ends_all_processes_in_one_line(tmp_path):
    path = os.pathsep.join([str(HERE), str(TOOLS), str(TOOLS.parent)])
    script, out = tmp_path / 'session.py', tmp_path / 'out'
    script.write_text(SESSION)
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', script, out],
        env=os.environ | dict(PYTHONPATH=path),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background ignore the signal, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (out / 'segmentation/waits').exists():
        time.sleep(0.05)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does

    _, printed = process.communicate()
    assert printed == 'interrupted: the same command resumes\n'
    assert process.returncode == 130
    while group_exists(process.pid):  # for a moment; the other would wait longer
        time.sleep(0.05)


def test_a_folder_has_one_session_at_a_time(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(UsageError, match='another quickstart trains'),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def group_exists(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
