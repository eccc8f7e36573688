"""Train what is not finished yet, show progress, and keep the report up to date."""

import fcntl
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmsparse.errors import UsageError
from quickstart import report
from quickstart.progress import Display, Progress, format_minutes
from quickstart.runs import run_all
from quickstart.tasks import Job, shorten


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a folder for this process; raise UsageError if another one uses it."""
    with (out / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f'another quickstart trains in {out}') from None
        yield


def run_interruptible(function: Callable[[], None]) -> int:
    """Call a function; return 130, as shells do, if it is interrupted or terminated."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        function()
    except KeyboardInterrupt:
        print('interrupted: the same command resumes', file=sys.stderr)
        return 130
    return 0


def train_all(
    jobs: Mapping[str, Job], out: Path, cores: int, title: str, train: Callable
) -> None:
    """Train all models; write the report whenever it has more to show.

    Args:
        jobs: The training runs by their tasks.
        out: Folder of the report.
        cores: Free cores.
        title: Title of the report.
        train: Function of the processes, see `quickstart.training.train_job`.

    Raises:
        UsageError: A training failed.
    """
    progress = Progress(jobs, cores)
    display = Display(progress)
    announced = set()

    def announce(what: str, line: str) -> None:
        if what not in announced:
            announced.add(what)
            display.print(line)

    def listen(job: Job, message: dict[str, Any]) -> None:
        progress.add(job.task, message)
        seconds = progress.seconds_left
        if seconds is not None:
            announce('time', f'{format_minutes(seconds)} of training on this machine')
        if message.get('drawn') or not message:
            page, *_ = report.write(out, title, jobs)
            announce('report', f'first predictions: {shorten(page)}')
        display.update()

    try:
        run_all(jobs.values(), train, cores, listen)
    finally:
        display.close()
