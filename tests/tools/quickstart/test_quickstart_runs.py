"""Processes of the quickstart, with functions instead of training runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quickstart.runs import run_all
from quickstart.session import locked
from small_jobs import fail_or_wait, finish, finish_at_once, make_jobs

from mmsparse.errors import UsageError

HERE, TOOLS = Path(__file__).parent, Path(__file__).parents[3] / 'tools'
# The same as tools/quickstart.py, but with a function that waits.
SESSION = """\
import sys
from pathlib import Path
import small_jobs
from quickstart import session

if __name__ == '__main__':
    out = Path(sys.argv[1])
    jobs = small_jobs.make_jobs(out)
    for job in jobs.values():
        job.prepare_folder()
    small_jobs.finish(jobs['classification'])
    del jobs['detection']
    def train():
        session.train_all(jobs, out, 2, 'title', small_jobs.fail_or_wait)
    sys.exit(session.run_interruptible(train))
"""


def test_children_start_from_the_checkpoint_of_their_parent(tmp_path):
    jobs = make_jobs(tmp_path)
    finish(jobs['segmentation'])
    for job in jobs.values():
        job.prepare_folder()
    heard = []

    def listen(job, message):
        heard.append((job.task, message))

    run_all(jobs.values(), finish_at_once, 2, listen)

    tasks = ('classification', 'detection')
    messages = (dict(iteration=0), dict(iteration=0), {})  # start, one message, end
    assert heard == [(task, message) for task in tasks for message in messages]
    assert (tmp_path / 'classification/pretrained.txt').read_text() == 'None'
    parent = jobs['classification'].folder / 'iter_100.pth'
    assert (tmp_path / 'detection/pretrained.txt').read_text() == str(parent)
    assert all(job.read_result() for job in jobs.values())


def test_a_failed_training_is_one_line_and_stops_the_others(tmp_path):
    jobs = make_jobs(tmp_path)
    for job in jobs.values():
        job.prepare_folder()
    finish(jobs['classification'])
    begin = time.monotonic()

    with pytest.raises(UsageError) as error:
        run_all(jobs.values(), fail_or_wait, 2, lambda *_: None)

    log = tmp_path / 'detection/train.log'
    assert str(error.value) == f'detection failed: ValueError: too bad; see {log}'
    assert time.monotonic() - begin < 200  # segmentation would wait longer


def test_an_interruption_ends_all_processes_in_one_line(tmp_path):
    path = os.pathsep.join([str(HERE), str(TOOLS), str(TOOLS.parent)])
    script = tmp_path / 'session.py'
    script.write_text(SESSION)
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', script, tmp_path],
        env=os.environ | dict(PYTHONPATH=path),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for((tmp_path / 'segmentation/waits').exists)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does

    _, printed = process.communicate(timeout=60)
    assert printed == 'interrupted: the same command resumes\n'
    assert process.returncode == 130
    wait_for(lambda: not group_exists(process.pid))


def test_a_folder_has_one_session_at_a_time(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(UsageError, match='another quickstart trains'),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def wait_for(condition):
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group_exists(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
