"""Find images and videos by path, and read the frames of a video."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv

from mmsparse.datasets.errors import SampleError
from mmsparse.errors import UsageError
from mmsparse.visualization.image_transform import Pixels

IMAGES = (
    '.bmp',
    '.jp2',
    '.jpeg',
    '.jpg',
    '.png',
    '.pgm',
    '.ppm',
    '.tif',
    '.tiff',
    '.webp',
)
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Args:
        path: The file.
        name: Path of its outputs below the output folder, without suffix.
    """

    path: str
    name: str

    @property
    def is_video(self) -> bool:
        return Path(self.path).suffix.lower() in VIDEOS


def find_sources(paths: Sequence[str], out: Path) -> list[Source]:
    """Find the images and videos of paths.

    Args:
        paths: Image files, video files and folders. Of a folder all images in it and in
            its subfolders count, except hidden ones.
        out: Output folder, whose images do not count.

    Returns:
        The sources, those of a folder in alphabetical order.

    Raises:
        UsageError: A path does not exist, or a folder has no images.
    """
    sources = []
    for path in paths:
        if Path(path).is_dir():
            sources += _find_images(Path(path), out.resolve())
        elif Path(path).is_file():
            sources.append(Source(path, Path(path).stem))
        else:
            raise UsageError(f'no such file: {path}')
    return sources


def _find_images(folder: Path, out: Path) -> list[Source]:
    found = []
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder)
        hidden = any(part.startswith('.') for part in name.parts)
        if path.suffix.lower() in IMAGES and not hidden and path.is_file():
            found.append(Source(str(path), str(name.with_suffix(''))))
    found = [x for x in found if out not in Path(x.path).resolve().parents]
    if not found:
        raise UsageError(
            f'no image in the folder {folder} (a file with {", ".join(IMAGES)})'
        )
    return found


class Video:
    """A video file; SampleError is raised if its first frame cannot be read.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.video = mmcv.VideoReader(path)
        self.first = self.video.read()
        if self.first is None:
            raise SampleError(f'not a readable video: {path}')
        self.fps = self.video.fps or 25.0
        self.length = max(self.video.frame_cnt, 1)  # as far as the file says

    def frames(self) -> Iterator[Pixels]:
        """Yield all frames that can be read, BGR, (H, W, 3)."""
        yield self.first
        while (frame := self.video.read()) is not None:
            yield frame
