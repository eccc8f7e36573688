"""The quickstart's configs, and which training runs are finished, without training."""

import dataclasses
import runpy
import sys

from _cli import run

import pytest
import quickstart.tasks as tasks
from mmengine.config import Config
from small_jobs import finish, make_jobs

from mmsparse.errors import UsageError
from mmsparse.models.backbones import BACKBONES


@pytest.fixture
def job(tmp_path):
    return make_jobs(tmp_path)['classification']


def test_every_family_of_backbones_is_a_choice():
    assert set(tasks.MODELS) == set(BACKBONES)


@pytest.mark.parametrize('family', tasks.MODELS)
def test_every_family_has_a_config_for_each_task(family):
    configs = tasks.find_configs(family)

    assert list(configs) == ['classification', 'segmentation', 'detection']
    for path in configs.values():
        assert tasks.MODELS[family] in path.stem


def test_parents_come_before_their_children():
    order = list(tasks.TASKS)

    for name, task in tasks.TASKS.items():
        assert task.parent == '' or order.index(task.parent) < order.index(name)


@pytest.mark.parametrize(
    ('train_cfg', 'indices', 'iterations'),
    [
        (dict(max_iters=70), None, 70),
        (dict(max_epochs=3), None, 3 * 4),
        (dict(max_epochs=3), 9, 3 * 2),
    ],
)
def test_iterations_are_counted_by_epochs_or_iterations(train_cfg, indices, iterations):
    dataset = {} if indices is None else dict(indices=indices)
    cfg = Config(
        dict(
            train_cfg=train_cfg,
            train_dataloader=dict(batch_size=8, dataset=dataset),
        )
    )

    assert tasks.count_iterations(cfg, images=25) == iterations


def test_a_plan_depends_on_config_seed_and_parent(tmp_path):
    def fingerprints(seed=0, **options):
        jobs = tasks.plan('dat', tmp_path, seed, tmp_path, options)
        return [job.fingerprint for job in jobs.values()]

    plan = fingerprints()
    shorter = fingerprints(segmentation={'train_cfg.max_iters': 5})
    other_parent = fingerprints(classification={'train_dataloader.batch_size': 5})

    assert fingerprints() == plan
    assert not set(fingerprints(seed=1)) & set(plan)
    assert [a == b for a, b in zip(plan, shorter, strict=True)] == [True, False, True]
    assert not set(other_parent) & set(plan)


def test_a_finished_training_is_known_by_its_result_and_checkpoint(job):
    assert job.read_result() is None

    finish(job)

    assert job.read_result()['result']['value'] == 97.25
    (job.folder / 'iter_100.pth').unlink()
    assert job.read_result() is None


def test_a_damaged_result_is_no_result(job):
    finish(job)
    (job.folder / tasks.RESULT).write_text('{"fingerpr')

    assert job.read_result() is None


def test_a_training_with_the_same_settings_keeps_its_files(job):
    finish(job)
    before = sorted(job.folder.iterdir())

    job.prepare_folder()

    assert sorted(job.folder.iterdir()) == before


@pytest.mark.parametrize('restart', [False, True])
def test_a_new_training_removes_old_files_and_no_others(job, tmp_path, restart):
    finish(job)
    (job.folder / 'notes.txt').write_text('mine')
    other = job if restart else dataclasses.replace(job, fingerprint='another')

    other.prepare_folder(restart)

    left = sorted(path.name for path in job.folder.iterdir())
    assert left == ['notes.txt', tasks.SETTINGS]
    assert other.read_result() is None


def test_checkpoints_of_another_command_are_kept(job):
    job.folder.mkdir(parents=True)
    (job.folder / 'epoch_3.pth').write_text('mine')

    with pytest.raises(UsageError, match='classification has checkpoints of another'):
        job.prepare_folder()

    assert (job.folder / 'epoch_3.pth').read_text() == 'mine'


def test_a_file_as_output_folder_is_an_error(tmp_path, monkeypatch):
    (tmp_path / 'a.txt').touch()
    command = ['quickstart.py', '--out', str(tmp_path / 'a.txt')]
    monkeypatch.setattr(sys, 'argv', command)
    script = runpy.run_path(str(tasks.ROOT / 'tools' / 'quickstart.py'))

    with pytest.raises(SystemExit, match=r'--out must be a folder; .*a\.txt is a file'):
        run(script['main'])
