"""Train models side by side, each in its own process."""

import os
import signal
from collections.abc import Callable, Iterable
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from _processes import shielded_from_interrupts

from mmsparse.errors import UsageError
from quickstart.schedule import threads_of_each
from quickstart.tasks import LOG, Job, shorten

# Threads that wait spin for less than 1 ms: without it two are slower than one, and
# the default, for longer, takes the time of other processes.
ENVIRONMENT = dict(GOMP_SPINCOUNT='10000')
Listener = Callable[[Job, dict[str, Any]], None]


def run_all(jobs: Iterable[Job], train: Callable, cores: int, listen: Listener) -> None:
    """Train what is not finished, each as soon as the process of its parent has ended.

    Args:
        jobs: The training runs.
        train: Function of the processes, see `quickstart.training.train_job`.
        cores: Cores that all training runs share.
        listen: Called when a training starts, with every message of it, and with an
            empty one when it has ended.

    Raises:
        UsageError: A training failed; the others are stopped.
    """
    os.environ.update(ENVIRONMENT)  # read by a process when it starts
    jobs = {job.task: job for job in jobs}
    waiting = [job for job in jobs.values() if not job.read_result()]
    runs: list[Run] = []
    try:
        while waiting or runs:
            unfinished = [*waiting, *(run.job for run in runs)]
            for job in list(waiting):
                parent = jobs.get(job.parent)
                if parent not in unfinished:
                    pretrained = parent and parent.read_result()['result']['checkpoint']
                    runs.append(Run(train, job, pretrained))
                    waiting.remove(job)
                    listen(job, dict(iteration=0))
            for run in runs:
                run.threads.value = threads_of_each(cores, len(runs))
            for link in wait([run.link for run in runs]):
                run = next(run for run in runs if run.link is link)
                message = run.receive()
                if not message:
                    runs.remove(run)
                listen(run.job, message)
    finally:
        for run in runs:
            run.stop()


class Run:
    """A training in a process.

    Args:
        train: Function of the process.
        job: The training.
        pretrained: Checkpoint that it starts from.
    """

    def __init__(self, train: Callable, job: Job, pretrained: str | None) -> None:
        context = get_context('spawn')
        self.job = job
        self.threads = context.Value('i', 1)
        self.link, theirs = context.Pipe(duplex=False)
        arguments = (job, pretrained, self.threads, theirs)
        self.process = context.Process(target=train, args=arguments)
        with shielded_from_interrupts():
            self.process.start()
        theirs.close()  # so that the link ends with the process

    def receive(self) -> dict[str, Any]:
        """Return the next message, an empty one at the end, or raise UsageError."""
        try:
            return self.link.recv()
        except (EOFError, OSError):
            self.process.join()
        if self.process.exitcode or not self.job.read_result():
            log = self.job.folder / LOG
            raise UsageError(f'{self.job.task} {self._reason(log)}; see {shorten(log)}')
        return {}

    def _reason(self, log: Path) -> str:
        code = self.process.exitcode
        if code < 0:
            return f'was ended by {signal.Signals(-code).name}'
        lines = log.read_text().splitlines() if log.is_file() else []
        last = next(filter(None, map(str.strip, reversed(lines))), 'no message')
        return f'failed: {last}'

    def stop(self) -> None:
        """End the process at once; its last checkpoint stays."""
        self.process.kill()
        self.process.join()
