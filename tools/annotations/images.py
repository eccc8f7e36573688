"""Images and label files of a data set, matched by name."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mmcv import imread
from PIL import Image

from annotations.instances import Size
from annotations.problems import AnnotationError, Problem, Problems
from mmsparse.datasets.transforms import ORIENTATION, SIDEWAYS
from mmsparse.errors import UsageError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files in a folder and its subfolders, or raise UsageError.

    They are sorted; hidden files are left out.
    """
    if not folder.is_dir():
        raise UsageError(f'no such folder: {folder}')
    files = [
        path
        for path in sorted(folder.rglob('*'))
        if path.suffix.lower() in suffixes and not path.name.startswith('.')
    ]
    if not files:
        others = sorted(path.name for path in folder.iterdir())[:3]
        raise UsageError(
            f'no files *{", *".join(suffixes)} in {folder}; it has '
            f'{", ".join(others) or "no files"}'
        )
    return files


def by_name(files: list[Path], folder: Path, problems: Problems) -> dict[str, Path]:
    """Return files by their path in the folder without suffix."""
    named: dict[str, Path] = {}
    for path in files:
        name = path.relative_to(folder).with_suffix('').as_posix()
        if name in named:
            problems.add(Problem.SAME_NAME, f'{named[name]} and {path.name}')
        named.setdefault(name, path)
    return named


def read_split(
    path: Path, images: dict[str, Path], problems: Problems
) -> dict[str, Path]:
    """Return the images that a file lists, one per line.

    A line is a name as in VOC's ImageSets, or a path as in YOLO's lists.
    """
    names = {image.resolve(): name for name, image in images.items()}
    chosen: dict[str, Path] = {}
    for number, line in _lines(path):
        if line in images:
            name = line
        else:
            paths = [Path(line), path.parent / line]
            found = [names[x.resolve()] for x in paths if x.resolve() in names]
            name = found[0] if found else str(Path(line).with_suffix(''))
        place = f'{path}:{number}: {line}'
        if name not in images:
            problems.add(Problem.NOT_LISTED, place)
        elif name in chosen:
            problems.add(Problem.REPEATED, place)
        else:
            chosen[name] = images[name]
    return chosen


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise UsageError(f'no such file: {path}')
    lines = path.read_text(encoding='utf-8-sig').splitlines()
    numbered = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f'{path} lists no images')
    yield from numbered


def image_size(path: Path) -> Size:
    """Return width and height of an image as mmcv loads it, or raise AnnotationError.

    They are read from the header, unless EXIF turns the image: OpenCV turns only images
    of some formats.
    """
    with suppress(Exception), Image.open(path) as image:  # decoders raise anything
        if image.getexif().get(ORIENTATION) not in SIDEWAYS:
            return image.size
    with suppress(Exception):
        height, width = imread(path).shape[:2]
        return width, height
    raise AnnotationError(Problem.UNREADABLE, 'cannot be decoded')
