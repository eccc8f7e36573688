"""Files written completely or not at all, and the last undamaged checkpoint."""

import os
import resource
from contextlib import contextmanager

import pytest
import torch
from mmengine.fileio import get_file_backend

from mmsparse.engine import checkpoints
from mmsparse.engine.checkpoints import find_damage, last_whole_checkpoint
from mmsparse.errors import UsageError


@pytest.fixture
def backend():
    return get_file_backend(backend_args=dict(backend='whole_file'))


@contextmanager
def file_size_limit(count):
    """Limit files to so many bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_missing_folders_are_created(backend, tmp_path):
    backend.put(b'weights', tmp_path / 'a' / 'b.pth')

    assert (tmp_path / 'a' / 'b.pth').read_bytes() == b'weights'


def test_a_full_disk_leaves_the_old_file_and_no_other(backend, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    backend.put(b'old', path)

    with file_size_limit(1000), pytest.raises(OSError, match='File too large'):
        backend.put(bytes(5000), path)

    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['epoch_1.pth']


def test_ctrl_c_leaves_no_partial_file(backend, tmp_path, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupted)

    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new', tmp_path / 'epoch_1.pth')

    assert not os.listdir(tmp_path)


@pytest.fixture
def work_dir(tmp_path):
    """Return a folder with three checkpoints, the third of which is the last."""
    for i in (1, 2, 3):
        path = tmp_path / f'epoch_{i}.pth'
        torch.save(dict(state_dict=dict(weight=torch.full((1000,), i))), path)
        os.utime(path, (i, i))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_checkpoint_is_found(work_dir):
    assert last_whole_checkpoint(work_dir) == work_dir / 'epoch_3.pth'


@pytest.mark.parametrize(
    'damage', [cut, flip_a_bit, lambda path: path.write_bytes(b'')]
)
def test_a_damaged_checkpoint_is_skipped_and_named(damage, work_dir, monkeypatch):
    log = []
    monkeypatch.setattr(checkpoints, 'print_log', lambda text, **_: log.append(text))
    damage(work_dir / 'epoch_3.pth')

    found = last_whole_checkpoint(work_dir)

    assert found == work_dir / 'epoch_2.pth'
    assert len(log) == 1
    assert 'epoch_3.pth (' in log[0]
    assert f'Resuming from {found}' in log[0]


@pytest.mark.parametrize('text', ['', '\0\0\0', 'gone.pth'])
def test_without_a_recorded_name_the_newest_is_found(text, work_dir):
    (work_dir / 'last_checkpoint').write_text(text)

    assert last_whole_checkpoint(work_dir) == work_dir / 'epoch_3.pth'


def test_a_copied_folder_resumes_from_its_own_files(work_dir, tmp_path_factory):
    copied = tmp_path_factory.mktemp('copied')
    for path in work_dir.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())

    assert last_whole_checkpoint(copied) == copied / 'epoch_3.pth'


def test_a_checkpoint_that_is_a_folder_is_not_checked(work_dir):
    (work_dir / 'epoch_4.pth').mkdir()
    (work_dir / 'last_checkpoint').write_text('epoch_4.pth')

    assert last_whole_checkpoint(work_dir) == work_dir / 'epoch_4.pth'


def test_nothing_is_found_in_a_new_folder(tmp_path):
    assert last_whole_checkpoint(tmp_path / 'new') is None


def test_if_all_are_damaged_all_are_named(work_dir):
    for path in work_dir.glob('*.pth'):
        cut(path)

    with pytest.raises(
        UsageError, match=r'epoch_3.*epoch_2.*epoch_1.*without --resume'
    ):
        last_whole_checkpoint(work_dir)


def test_damage_is_described(work_dir, tmp_path):
    flip_a_bit(work_dir / 'epoch_1.pth')

    assert 'is damaged' in find_damage(work_dir / 'epoch_1.pth')
    assert find_damage(tmp_path / 'gone.pth') == 'No such file or directory'
    assert find_damage(work_dir / 'last_checkpoint') == 'truncated or not a checkpoint'
    assert find_damage(work_dir / 'epoch_2.pth') is None
