"""Jobs whose processes import nothing of torch, and are over at once, or never."""

import time
from dataclasses import dataclass
from pathlib import Path

PARENTS = dict(classification='', segmentation='classification')
PARENTS['detection'] = 'classification'


@dataclass(frozen=True)
class LightJob:
    """What `quickstart.runs` needs of a job."""

    task: str
    folder: Path

    @property
    def parent(self):
        return PARENTS[self.task]

    def read_result(self):
        checkpoint = self.folder / 'iter_100.pth'
        return checkpoint.is_file() and dict(result=dict(checkpoint=str(checkpoint)))


def make_jobs(out, finished=()):
    jobs = {task: LightJob(task, out / task) for task in PARENTS}
    for job in jobs.values():
        job.folder.mkdir()
        if job.task in finished:
            (job.folder / 'iter_100.pth').touch()
    return jobs


def finish(job, pretrained, threads, link):
    link.send(dict(iteration=0, pretrained=pretrained))
    (job.folder / 'iter_100.pth').touch()


def fail_or_wait(job, pretrained, threads, link):
    if job.task == 'detection':
        while not (job.folder.parent / 'segmentation/waits').exists():
            time.sleep(0.01)
        (job.folder / 'train.log').write_text('Traceback\nValueError: too bad\n\n')
        raise SystemExit(1)
    (job.folder / 'waits').touch()
    time.sleep(1000)
