"""CamVid: street scenes with label maps, as SegNet's authors split it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _progress import Progress
from annotations.draw import spread
from numpy.typing import NDArray
from PIL import Image

from mmsparse.datasets.transforms import IGNORED
from mmsparse.errors import UsageError
from public_data.data_set import DataSet, copy_files, find_images
from public_data.label_maps import blend, read_label_map, save_label_map

CLASSES = (
    *('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence'),
    *('car', 'pedestrian', 'bicyclist'),
)
PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)),
    *((128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0)),
    (0, 128, 192),
)
VOID = len(CLASSES)
SPLITS = ('train', 'val', 'test')
LAYOUT = """\
reads CamVid as SegNet's authors split it: {train,val,test}/*.png or .jpg and
{train,val,test}annot/*.png with labels 0 to 10, and 11 for void; writes for
BaseSegDataset of mmsegmentation
  images/{train,val,test}/        the images as they are
  annotations/{train,val,test}/   label maps, PNG, with void as 255, which is ignored"""


def count(root: Path) -> dict[str, int]:
    counts = {}
    for split in SPLITS:
        counts[f'{split} images'] = len(find_images(root / split))
        counts[f'{split} label maps'] = len(
            list((root / f'{split}annot').glob('*.png'))
        )
    return counts


def draw(root: Path, number: int) -> list[Image.Image]:
    tiles = []
    for path in spread(find_images(root / 'train'), number):
        labels = read_labels(root, 'train', path)
        labels[labels == IGNORED] = VOID
        tiles.append(blend(path, labels, [*PALETTE, (0, 0, 0)]))
    return tiles


def write(root: Path, out: Path) -> Iterator[str]:
    pixels = np.zeros(256, np.int64)
    for split in SPLITS:
        images = find_images(root / split)
        folder = out / 'annotations' / split
        folder.mkdir(parents=True)
        with Progress(f'{split} label maps', len(images), 'files') as progress:
            for path in images:
                labels = read_labels(root, split, path)
                pixels += np.bincount(labels.ravel(), minlength=256)
                save_label_map(labels, PALETTE, folder / f'{path.stem}.png')
                progress.update()
        pairs = ((path, out / 'images' / split / path.name) for path in images)
        copy_files(f'{split} images', pairs)
        yield f'{split}: {len(images)} images with label maps'
    shares = 100 * pixels / pixels.sum()
    named = zip((*CLASSES, 'void'), (*shares[:VOID], shares[IGNORED]), strict=True)
    yield 'pixels in %: ' + ', '.join(f'{name} {share:.1f}' for name, share in named)


def read_labels(root: Path, split: str, image: Path) -> NDArray[np.uint8]:
    """Return the label map of an image, with 255 for void; it is checked."""
    path = root / f'{split}annot' / f'{image.stem}.png'
    labels = read_label_map(path, image)
    if labels.max() > VOID:
        raise UsageError(
            f'{path} has the label {labels.max()}; expected 0 to {VOID}, as in the '
            'split of 11 classes by the authors of SegNet'
        )
    labels[labels == VOID] = IGNORED
    return labels


CAMVID = DataSet(
    summary='701 street scenes, label maps of 11 classes',
    layout=LAYOUT,
    markers=('trainannot',),
    counts={
        'train images': 367,
        'train label maps': 367,
        'val images': 101,
        'val label maps': 101,
        'test images': 233,
        'test label maps': 233,
    },
    count=count,
    draw=draw,
    write=write,
)
