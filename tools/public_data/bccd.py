"""BCCD: blood cells with boxes, as VOC."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from annotations.coco import write_coco
from annotations.draw import draw_sample, palette, spread
from annotations.images import by_name, find_files, read_split
from annotations.instances import Instance
from annotations.problems import Problems
from annotations.samples import Sample, read_samples
from annotations.voc import read_voc
from PIL import Image

from mmsparse.errors import UsageError
from public_data.data_set import DataSet, copy_files

CLASSES = ('RBC', 'WBC', 'Platelets')
SPLITS = ('train', 'val', 'test')
MIN_SIDE = 3  # pixels; two labels are a single pixel, all others are far larger
TWICE = 0.9  # overlap (IoU) of two boxes of the same class, from which one is too many
LAYOUT = """\
reads BCCD as its authors have it: Annotations/*.xml, JPEGImages/*.jpg and
ImageSets/Main/{train,val,test}.txt; writes for CocoDataset of mmdet
  images/*.jpg
  annotations/{train,val,test}.json   COCO: boxes of RBC, WBC and Platelets

Faults of the labels are printed with their number and files: boxes of one pixel are
left out, cells with two boxes keep both."""


def count(root: Path) -> dict[str, int]:
    counts = {
        'label files (Annotations)': len(list(root.glob('Annotations/*.xml'))),
        'images (JPEGImages)': len(list(root.glob('JPEGImages/*.jpg'))),
    }
    for split in SPLITS:
        path = split_file(root, split)
        lines = path.read_text().split() if path.is_file() else []
        counts[f'names ({path.relative_to(root)})'] = len(lines)
    return counts


def draw(root: Path, number: int) -> list[Image.Image]:
    samples = read(root, 'train', Problems())
    colors = dict(zip(CLASSES, palette(len(CLASSES)), strict=True))
    return [draw_sample(sample, colors) for sample in spread(samples, number)]


def write(root: Path, out: Path) -> Iterator[str]:
    problems, used = Problems(), []
    points, twice = [], []
    for split in SPLITS:
        samples = read(root, split, problems)
        points += [
            f'{sample.path.stem} ({instance.name})'
            for sample in samples
            for instance in sample.instances
            if is_point(instance)
        ]
        samples = [without_points(sample) for sample in samples]
        twice += labeled_twice(samples)
        folder = root / 'JPEGImages'
        write_coco(out / 'annotations' / f'{split}.json', samples, CLASSES, folder)
        used += [sample.path for sample in samples]
        counts = Counter(x.name for sample in samples for x in sample.instances)
        numbers = ', '.join(f'{name} {counts[name]}' for name in CLASSES)
        yield f'{split}: {len(samples)} images, {counts.total()} objects: {numbers}'
    if errors := list(problems.report(invalid=True)):
        raise UsageError('; '.join(errors))
    yield from problems.report(invalid=False)
    for text, names in (
        ('boxes of one pixel, left out', points),
        ('cells labeled twice, both kept', twice),
    ):
        if names:
            yield f'{text}: {len(names)}: {", ".join(sorted(names))}'
    copy_files('images', ((path, out / 'images' / path.name) for path in used))


def read(root: Path, split: str, problems: Problems) -> list[Sample]:
    """Return the images of a split; coordinates count pixels from 1.

    Boxes begin at 1 as often as they end at 640: the authors mirrored images so.
    """
    folder = root / 'JPEGImages'
    images = by_name(find_files(folder, ('.jpg',)), folder, problems)
    images = read_split(split_file(root, split), images, problems)
    paths = {name: root / 'Annotations' / f'{name}.xml' for name in images}
    labels = {
        name: read_voc(path, problems, one_based=True)
        for name, path in paths.items()
        if path.is_file()
    }
    return read_samples(images, labels, CLASSES, problems)


def is_point(instance: Instance) -> bool:
    """Return whether a box is too small to be a cell."""
    return bool((instance.box[2:] - instance.box[:2]).min() < MIN_SIDE)


def without_points(sample: Sample) -> Sample:
    kept = tuple(x for x in sample.instances if not is_point(x))
    return replace(sample, instances=kept)


def labeled_twice(samples: list[Sample]) -> list[str]:
    """Return the images where a cell has two boxes."""
    return [
        f'{sample.path.stem} ({first.name})'
        for sample in samples
        for first, second in combinations(sample.instances, 2)
        if first.name == second.name and overlap(first, second) >= TWICE
    ]


def overlap(first: Instance, second: Instance) -> float:
    """Return the intersection over union of two boxes."""
    low = np.maximum(first.box[:2], second.box[:2])
    high = np.minimum(first.box[2:], second.box[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / (first.area() + second.area() - shared)


def split_file(root: Path, split: str) -> Path:
    return root / 'ImageSets' / 'Main' / f'{split}.txt'


BCCD = DataSet(
    summary='364 images of blood cells, boxes of 3 classes',
    layout=LAYOUT,
    markers=('ImageSets/Main',),
    counts={
        'label files (Annotations)': 364,
        'images (JPEGImages)': 364,
        'names (ImageSets/Main/train.txt)': 205,
        'names (ImageSets/Main/val.txt)': 87,
        'names (ImageSets/Main/test.txt)': 72,
    },
    count=count,
    draw=draw,
    write=write,
)
