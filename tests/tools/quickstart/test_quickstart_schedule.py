"""Cores, threads and times."""

import math

import pytest
from quickstart import schedule
from quickstart.progress import Progress, format_minutes
from small_jobs import finish, make_jobs

BEFORE = """\
cpu  200 0 100 1700 0 0 0 0 0 0
cpu0 100 0 50 850 0 0 0 0 0 0
cpu1 100 0 50 800 50 0 0 0 0 0
cpu2 0 0 0 1000 0 0 0 0 0 0
intr 12345
"""
AFTER = """\
cpu  390 0 110 1800 0 0 0 0 0 0
cpu0 190 0 60 850 0 0 0 0 0 0
cpu1 100 0 50 850 100 0 0 0 0 0
cpu2 25 0 0 1050 0 0 0 25 0 0
intr 23456
"""
PARENTS = dict(classification='', segmentation='classification')
PARENTS['detection'] = 'classification'


@pytest.mark.parametrize(
    ('cores', 'busy'), [({0}, 1), ({1}, 0), ({2}, 0.5), ({0, 1, 2}, 1.5), ({7}, 0)]
)
def test_busy_cores_are_read_from_the_ticks_of_the_kernel(cores, busy):
    assert schedule.busy_cores(BEFORE, AFTER, cores) == busy


def test_a_machine_without_statistics_counts_as_idle():
    assert schedule.busy_cores('', '', {0, 1}) == 0


@pytest.mark.parametrize(
    ('text', 'cores'),
    [('max 100000', math.inf), ('150000 100000', 1.5), ('', math.inf)],
)
def test_the_quota_of_a_container_is_read(text, cores):
    assert schedule.core_quota(text) == cores


@pytest.mark.parametrize(
    ('available', 'quota', 'free'),
    [(3, '', 2), (3, '100000 100000', 1), (1, '', 1), (3, 'max 100000', 2)],
)
def test_at_least_one_core_is_free(monkeypatch, tmp_path, available, quota, free):
    texts = iter([BEFORE, AFTER, quota])
    monkeypatch.setattr(schedule, '_read', lambda path: next(texts))
    monkeypatch.setattr(schedule, 'available_cores', lambda: available)
    monkeypatch.setattr(schedule.os, 'sched_getaffinity', lambda _: {0, 1})

    assert schedule.free_cores(seconds=0) == free


@pytest.mark.parametrize(
    ('cores', 'num_runs', 'threads'),
    [(1, 1, 1), (1, 2, 1), (2, 1, 2), (2, 2, 1), (6, 2, 3), (64, 2, 4), (64, 1, 4)],
)
def test_training_runs_share_the_cores(cores, num_runs, threads):
    assert schedule.threads_of_each(cores, num_runs) == threads


def test_training_runs_after_the_first_run_side_by_side():
    work = dict(classification=10, segmentation=4, detection=9)

    def seconds(cores):
        return schedule.remaining_seconds(work, PARENTS, cores)

    faster = 2**schedule.SCALING
    assert seconds(cores=1) == pytest.approx(10 + 4 + 9)
    assert seconds(cores=2) == pytest.approx(10 / faster + 4 + 5 / faster)


def test_finished_training_runs_take_no_time():
    work = dict(classification=0, segmentation=0, detection=0)

    assert schedule.remaining_seconds(work, PARENTS, 2) == 0


def test_the_time_that_is_left_follows_from_the_first_iterations(tmp_path):
    jobs = make_jobs(tmp_path)
    progress = Progress(jobs, cores=1)
    progress.add('classification', dict(iteration=0))
    assert progress.seconds_left is None
    assert 'left' not in str(progress)

    progress.add('classification', dict(iteration=50, seconds=2.0, loss=1.234))

    work = sum(job.work for job in jobs.values())
    assert progress.fraction == pytest.approx(50 / work)
    assert progress.seconds_left == pytest.approx(2.0 * (work - 50))
    assert 'min left; classification 50%, loss 1.23' in str(progress)


def test_each_task_is_measured_when_it_runs(tmp_path):
    jobs = make_jobs(tmp_path)
    finish(jobs['classification'])
    progress = Progress(jobs, cores=2)
    times = dict(segmentation=1.0, detection=3.0)
    for task in times:
        progress.add(task, dict(iteration=0))
    for task, seconds in times.items():
        progress.add(task, dict(iteration=10, seconds=seconds))
        message = dict(iteration=10, metric='mIoU', value=45.67)
    progress.add('segmentation', message)

    after = 60 * 3.0 / 2**schedule.SCALING  # detection alone
    assert progress.seconds_left == pytest.approx(90 * 1.0 + after)
    assert 'segmentation 10%, mIoU 45.7; detection 10%' in str(progress)


def test_the_end_of_a_training_counts_all_its_work(tmp_path):
    progress = Progress(make_jobs(tmp_path), cores=2)
    for task in PARENTS:
        progress.add(task, dict(iteration=1))
        progress.add(task, {})

    assert progress.fraction == 1
    assert str(progress) == ''


@pytest.mark.parametrize(
    ('seconds', 'text'), [(10, 'less than a minute'), (95, 'about 2 min')]
)
def test_times_are_rounded(seconds, text):
    assert format_minutes(seconds) == text
