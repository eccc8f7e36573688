"""Finding images and videos."""

import cv2
import numpy as np
import pytest
from infer.inputs import Source, Video, find_sources

from mmsparse.datasets.errors import SampleError
from mmsparse.errors import UsageError


@pytest.fixture
def folder(tmp_path):
    """A folder with images, other files, and drawings of an earlier run."""
    for name in (
        'b.JPG',
        'a.png',
        'sub/a.TIFF',
        'notes.txt',
        '.hidden.png',
        '.cache/c.png',
        'drawn/vis/a.png',
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    return tmp_path


def test_a_folder_has_the_images_of_its_subfolders(folder):
    found = find_sources([str(folder)], folder / 'drawn')

    assert found == [
        Source(str(folder / 'a.png'), 'a'),
        Source(str(folder / 'b.JPG'), 'b'),
        Source(str(folder / 'sub/a.TIFF'), 'sub/a'),
    ]


def test_files_and_folders_can_be_mixed(folder):
    paths = [str(folder / name) for name in ('notes.txt', 'sub')]

    found = find_sources(paths, folder / 'out')

    assert [source.name for source in found] == ['notes', 'a']


def test_a_folder_without_images_and_a_missing_file_are_errors(tmp_path):
    (tmp_path / 'video.mp4').touch()

    with pytest.raises(UsageError, match=rf'no image in the folder {tmp_path} \(a f'):
        find_sources([str(tmp_path)], tmp_path / 'out')
    with pytest.raises(UsageError, match='no such file: no.jpg'):
        find_sources(['no.jpg'], tmp_path / 'out')


@pytest.mark.parametrize('suffix', ['.avi', '.MP4'])
def test_all_frames_of_a_video_are_read(suffix, tmp_path):
    path = str(tmp_path / f'clip{suffix}')
    codec = cv2.VideoWriter.fourcc(*('MJPG' if suffix == '.avi' else 'mp4v'))
    writer = cv2.VideoWriter(path, codec, 5.0, (64, 48))
    for value in (50, 100, 150):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()

    assert Source(path, 'clip').is_video
    video = Video(path)

    means = [frame.mean() for frame in video.frames()]
    assert means == pytest.approx([50, 100, 150], abs=6)
    assert (video.fps, video.length) == (5, 3)


def test_a_file_that_is_no_video_is_an_error(tmp_path):
    (tmp_path / 'a.mp4').write_bytes(b'nothing')

    with pytest.raises(SampleError, match=f'not a readable video: {tmp_path}/a.mp4'):
        Video(str(tmp_path / 'a.mp4'))
