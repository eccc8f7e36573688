"""Write digit images in the layouts of ImageNet, COCO and ADE20K."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from _processes import (
    available_cores,
    end_with_parent,
    shielded_from_interrupts,
)
from _progress import Progress
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from digits.scenes import Digit, draw_scene, draw_single, tight_box

FORMAT = 'mmsparse digits'
VERSION = 2  # of the files: raise it when their content changes
SPLITS = ('train', 'val')
ADE_SPLITS = {'train': 'training', 'val': 'validation'}
CLASSES = tuple('0123456789')
VAL_SCANS = 360  # of 1,797
SCENE, SINGLE = 0, 1  # in the keys of images
SCENE_SIZE = 128
SINGLE_SIZE = 64
# Training covers a wider range: its features also serve the scenes' smaller digits.
SINGLE_SIDES = {'train': (28, 60), 'val': (40, 60)}
PALETTE = (
    *((0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200)),
    *((245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230)),
    *((210, 245, 60), (250, 190, 212)),
)
PART = 50  # images that a process writes between two reports
# Names of the files that are written; no other file is ever removed.
WRITTEN = re.compile(
    r'meta\.json'
    r'|classification/(train|val)/\d/\d{4}_\d+\.jpg'
    r'|detection/(train|val)/\d{5,}\.jpg'
    r'|detection/annotations/(train|val)\.json'
    r'|segmentation/images/(training|validation)/\d{5,}\.jpg'
    r'|segmentation/annotations/(training|validation)/\d{5,}\.png'
)

Key = tuple[int, ...]  # of the random stream of an image


@dataclass(frozen=True)
class Settings:
    """Settings that decide the content of the files.

    Args:
        seed: 0 to 2**32 - 1.
        train_scenes: Scenes with training scans.
        val_scenes: Scenes with validation scans.
        train_images_per_scan: Classification images of each training scan.
        val_images_per_scan: Classification images of each validation scan.

    Raises:
        ValueError: A setting is out of range.
    """

    seed: int
    train_scenes: int
    val_scenes: int
    train_images_per_scan: int
    val_images_per_scan: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f'--seed must be 0 to 2**32 - 1, got {self.seed}')
        for name, value in asdict(self).items():
            if name != 'seed' and value < 1:
                option = '--' + name.replace('_', '-')
                raise ValueError(f'{option} must be at least 1, got {value}')

    def scenes(self, split: str) -> int:
        return self.train_scenes if split == 'train' else self.val_scenes

    def images_per_scan(self, split: str) -> int:
        return asdict(self)[f'{split}_images_per_scan']

    def generator(self, *key: int) -> Generator:
        """Return the random stream of one image, independent of all others."""
        return np.random.default_rng((self.seed, *key))


@dataclass(frozen=True)
class Scans:
    """The handwritten digits.

    Args:
        images: 0 (paper) to 16 (ink), (S, 8, 8).
        labels: 0 to 9, (S,).
        splits: Indices of the scans of 'train' and 'val'.
    """

    images: NDArray[np.floating]
    labels: NDArray[np.integer]
    splits: dict[str, NDArray[np.integer]]


def prepare(out: Path, settings: Settings, force: bool) -> None:
    """Build all layouts in a folder, or nothing.

    Args:
        out: The folder; missing parents are created.
        settings: What to build.
        force: Whether to replace digits that exist.

    Raises:
        ValueError: The folder has files that must not be replaced.
        OSError: It cannot be written.
    """
    if not force and is_complete(out, settings):
        print(f'{out} is complete, nothing to do')
        return
    check_replaceable(out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as temporary:
        built = Path(temporary, 'built')
        counts = build(built, load_scans(settings.seed), settings)
        if out.exists():
            out.rename(built.with_name('replaced'))
        built.rename(out)
    print(f'wrote {out}')
    for name, count in counts.items():
        print(f'{count:7} {name}')


def is_complete(out: Path, settings: Settings) -> bool:
    """Return whether a folder has these settings and the right number of files."""
    written = sum(bool(WRITTEN.fullmatch(name)) for name in list_files(out))
    return read_meta(out) == describe(settings, written)


def check_replaceable(out: Path, force: bool) -> None:
    """Raise ValueError if a build must not replace a folder."""
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is not a folder')
    files = list_files(out)
    if not files:
        return
    if not read_meta(out):
        raise ValueError(f'{out} has files other than digits: choose another --out')
    if not force:
        raise ValueError(
            f'{out} has other settings or is incomplete: replace it with --force'
        )
    for name in files:
        if not WRITTEN.fullmatch(name):
            raise ValueError(
                f'{out} also has {name}, which is not of the data set: move it first'
            )


def list_files(folder: Path) -> list[str]:
    """Return the relative names of all files and links in a folder."""
    paths = (path for path in folder.rglob('*') if path.is_symlink() or path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def read_meta(out: Path) -> dict:
    """Return the content of meta.json; empty if there is none."""
    try:
        meta = json.loads((out / 'meta.json').read_text())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and meta.get('format') == FORMAT else {}


def describe(settings: Settings, files: int) -> dict:
    """Return the content of meta.json."""
    return dict(format=FORMAT, version=VERSION, settings=asdict(settings), files=files)


def load_scans(seed: int) -> Scans:
    """Load scikit-learn's scans, split with equal class proportions."""
    # Slow to import, and not needed if the data set is complete.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, val = train_test_split(
        np.arange(len(digits.target)),
        test_size=VAL_SCANS,
        stratify=digits.target,
        random_state=seed,
    )
    return Scans(digits.images, digits.target, {'train': train, 'val': val})


def build(out: Path, scans: Scans, settings: Settings) -> dict[str, int]:
    """Write all files; return the counts to print."""
    for folder in image_folders(out):
        folder.mkdir(parents=True)
    keys = image_keys(scans, settings)
    scenes: dict[str, list[list[dict]]] = {split: [] for split in SPLITS}
    with Progress('digits', len(keys), 'images') as progress:
        for part, annotations in write_in_processes(out, scans, settings, keys):
            progress.update(len(part))
            for (split, kind, *_), digits in zip(part, annotations, strict=True):
                if kind == SCENE:
                    scenes[SPLITS[split]].append(digits)
    counts = {}
    for split in SPLITS:
        path = out / 'detection' / 'annotations' / f'{split}.json'
        write_json(path, to_coco(scenes[split]))
        singles = settings.images_per_scan(split) * len(scans.splits[split])
        counts[f'{split} images of one digit'] = singles
        counts[f'{split} scenes'] = settings.scenes(split)
        counts[f'{split} digits in scenes'] = sum(map(len, scenes[split]))
    files = len(list_files(out)) + 1  # with meta.json
    write_json(out / 'meta.json', describe(settings, files))
    return counts


def image_folders(out: Path) -> Iterator[Path]:
    """Yield all folders that have files."""
    yield out / 'detection' / 'annotations'
    for split in SPLITS:
        yield from (out / 'classification' / split / name for name in CLASSES)
        yield out / 'detection' / split
        yield out / 'segmentation' / 'images' / ADE_SPLITS[split]
        yield out / 'segmentation' / 'annotations' / ADE_SPLITS[split]


def image_keys(scans: Scans, settings: Settings) -> list[Key]:
    """Return the keys of all images: (split, SCENE, n) or (split, SINGLE, scan, n)."""
    keys: list[Key] = []
    for i, split in enumerate(SPLITS):
        numbers = range(settings.images_per_scan(split))
        singles = product(scans.splits[split].tolist(), numbers)
        keys += [(i, SINGLE, *key) for key in singles]
        keys += [(i, SCENE, index) for index in range(settings.scenes(split))]
    return keys


def write_in_processes(
    out: Path, scans: Scans, settings: Settings, keys: list[Key]
) -> Iterator[tuple[list[Key], list[list[dict]]]]:
    """Write images with all cores; yield keys and annotations of a part, in order."""
    parts = [keys[start : start + PART] for start in range(0, len(keys), PART)]
    write = partial(write_images, out, scans, settings)
    workers = min(available_cores(), len(parts) // 10)  # each takes a second to start
    if workers < 2:
        yield from zip(parts, map(write, parts), strict=True)
        return
    pool = ProcessPoolExecutor(workers, get_context('spawn'), end_with_parent)
    try:
        with shielded_from_interrupts():
            written = pool.map(write, parts)
        yield from zip(parts, written, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def write_images(
    out: Path, scans: Scans, settings: Settings, keys: list[Key]
) -> list[list[dict]]:
    """Write images; return the COCO annotations of each, none for a single digit."""
    cv2.setNumThreads(0)  # for images this small, threads only cost time
    write = {SINGLE: write_single, SCENE: write_scene}
    return [
        write[kind](out, scans, SPLITS[split], rest, settings.generator(*key))
        for key in keys
        for split, kind, *rest in [key]
    ]


def write_single(
    out: Path, scans: Scans, split: str, key: Sequence[int], rng: Generator
) -> list[dict]:
    """Write an image of one digit into the folder of its class."""
    scan, number = key
    image = draw_single(scans.images[scan], SINGLE_SIZE, SINGLE_SIDES[split], rng)
    folder = out / 'classification' / split / CLASSES[scans.labels[scan]]
    (folder / f'{scan:04}_{number}.jpg').write_bytes(to_jpeg(image))
    return []


def write_scene(
    out: Path, scans: Scans, split: str, key: Sequence[int], rng: Generator
) -> list[dict]:
    """Write a scene as COCO and as ADE20K do; return its annotations."""
    image, digits = draw_scene(
        scans.images, scans.labels, scans.splits[split], SCENE_SIZE, rng
    )
    name, jpeg = f'{key[0]:05}', to_jpeg(image)
    (out / 'detection' / split / f'{name}.jpg').write_bytes(jpeg)
    folder = out / 'segmentation'
    (folder / 'images' / ADE_SPLITS[split] / f'{name}.jpg').write_bytes(jpeg)
    save_label_map(digits, folder / 'annotations' / ADE_SPLITS[split] / f'{name}.png')
    return [to_annotation(digit) for digit in digits]


def to_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode with full chroma resolution: a half would blur the smallest strokes."""
    file = BytesIO()
    settings = dict(quality=85, subsampling=0, optimize=True)
    Image.fromarray(image).save(file, 'JPEG', **settings)
    return file.getvalue()


def save_label_map(digits: Iterable[Digit], path: Path) -> None:
    """Save class indices, 0 for background, with a palette for viewers."""
    label_map = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    for digit in digits:
        label_map[digit.mask] = digit.label + 1
    image = Image.fromarray(label_map)
    image.putpalette([channel for color in PALETTE for channel in color])
    image.save(path)


def to_coco(scenes: list[list[dict]]) -> dict:
    """Return a COCO file with the annotations of scenes."""
    size = dict(width=SCENE_SIZE, height=SCENE_SIZE)
    digits = [(index, digit) for index, scene in enumerate(scenes) for digit in scene]
    return dict(
        info=dict(description=FORMAT, version=str(VERSION)),
        images=[
            dict(id=index, file_name=f'{index:05}.jpg', **size)
            for index in range(len(scenes))
        ],
        annotations=[
            dict(id=number, image_id=index, **digit)
            for number, (index, digit) in enumerate(digits, start=1)
        ],
        categories=[
            dict(id=number, name=name, supercategory='digit')
            for number, name in enumerate(CLASSES, start=1)
        ],
    )


def to_annotation(digit: Digit) -> dict:
    """Return the tight box, visible area and run-length mask of a digit.

    Its `scan` is the index among scikit-learn's scans.
    """
    left, top, right, bottom = tight_box(digit.mask).tolist()
    runs = coco_mask.encode(np.asfortranarray(digit.mask, np.uint8))
    return dict(
        category_id=digit.label + 1,
        bbox=[left, top, right - left, bottom - top],
        area=int(digit.mask.sum()),
        iscrowd=0,
        segmentation=dict(size=runs['size'], counts=runs['counts'].decode()),
        scan=digit.scan,
    )


def write_json(path: Path, content: dict) -> None:
    """Write JSON without spaces: the masks make it long."""
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')
