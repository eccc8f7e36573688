"""CIFAR-10: small images of ten classes, in folders or as the pickled original."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _progress import Progress
from annotations.draw import spread
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmsparse.errors import UsageError
from public_data.data_set import DataSet, copy_files, find_images

CLASSES = (
    *('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse'),
    *('ship', 'truck'),
)
SPLITS = {
    'train': tuple(f'data_batch_{number}' for number in range(1, 6)),
    'test': ('test_batch',),
}
SHAPE = (3, 32, 32)
LAYOUT = """\
reads class folders {train,test}/<class>/*.jpg or .png, or the pickled original,
data_batch_1 to 5 and test_batch; writes for CustomDataset of mmpretrain
  {train,test}/<class>/<number>   images of 32x32: JPEG as they are, or PNG without loss

The folder cifar-10-batches-py is what CIFAR10 of mmpretrain reads itself: set its
parent folder as data_root."""
MARKERS = ('train', 'data_batch_1')
DAMAGE = (  # what a cut or changed batch raises
    *(pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError),
    AttributeError,
)


class PlainUnpickler(pickle.Unpickler):
    """Reads arrays, lists and bytes alone: a downloaded pickle may run any code."""

    def find_class(self, module: str, name: str) -> object:
        """Return a constructor of numpy's arrays; refuse all others."""
        if module.partition('.')[0] == 'numpy' and name in (
            '_reconstruct',
            'ndarray',
            'dtype',
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'it names {module}.{name}')


def count(root: Path) -> dict[str, int]:
    return {
        f'{split} images of {name}': len(items)
        for split in SPLITS
        for name, items in find(root, split).items()
    }


def find(root: Path, split: str) -> dict[str, list[Path] | list[NDArray[np.uint8]]]:
    """Return files, or pixels (32, 32, 3), of a split by class."""
    if (root / MARKERS[1]).is_file():
        return read_batches(root, split)
    return {name: find_images(root / split / name) for name in CLASSES}


def read_batches(root: Path, split: str) -> dict[str, list[NDArray[np.uint8]]]:
    """Return pixels of the pickled original by class."""
    images: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in CLASSES}
    for name in SPLITS[split]:
        path = root / name
        try:
            with path.open('rb') as file:
                batch = PlainUnpickler(file, encoding='latin1').load()
            found = split_batch(batch)
        except FileNotFoundError:
            continue  # counted as missing
        except DAMAGE as error:
            raise UsageError(
                f'{path} is no whole batch of CIFAR-10 ({error}): repeat the download'
            ) from error
        for label, image in found:
            images[label].append(image)
    return images


def split_batch(batch: Any) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return class and pixels (32, 32, 3) of each image; raise any of DAMAGE."""
    pixels = batch['data'].reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
    labels = batch['labels']
    if pixels.dtype != np.uint8:
        raise ValueError(f'expected pixels of 8 bits, got {pixels.dtype}')
    if wrong := set(labels) - set(range(len(CLASSES))):
        raise ValueError(f'expected labels from 0 to 9, got {min(wrong)}')
    names = (CLASSES[label] for label in labels)
    return list(zip(names, pixels, strict=True))


def draw(root: Path, number: int) -> list[Image.Image]:
    items = [(name, x) for name, found in find(root, 'train').items() for x in found]
    tiles = []
    for name, item in spread(items, number):
        image = Image.open(item) if isinstance(item, Path) else Image.fromarray(item)
        tile = image.convert('RGB').resize((240, 240), Image.Resampling.NEAREST)
        ImageDraw.Draw(tile).text(
            (4, 4), name, (255, 255, 255), stroke_width=2, stroke_fill=(0, 0, 0)
        )
        tiles.append(tile)
    return tiles


def write(root: Path, out: Path) -> Iterator[str]:
    for split in SPLITS:
        found = find(root, split)
        if (root / MARKERS[1]).is_file():
            save(found, out / split)
        else:
            copy_files(
                f'{split} images',
                (
                    (path, out / split / name / path.name)
                    for name, paths in found.items()
                    for path in paths
                ),
            )
        yield f'{split}: {sum(map(len, found.values()))} images of 10 classes'


def save(images: dict[str, list[NDArray[np.uint8]]], folder: Path) -> None:
    """Write pixels as PNG, numbered in each class."""
    total = sum(map(len, images.values()))
    with Progress(f'{folder.name} images', total, 'files') as progress:
        for name, found in images.items():
            (folder / name).mkdir(parents=True)
            for number, image in enumerate(found):
                Image.fromarray(image).save(folder / name / f'{number:04}.png')
                progress.update()


CIFAR10 = DataSet(
    summary='60,000 images of 32x32, 10 classes',
    layout=LAYOUT,
    markers=MARKERS,
    counts={
        f'{split} images of {name}': number
        for split, number in (('train', 5000), ('test', 1000))
        for name in CLASSES
    },
    count=count,
    draw=draw,
    write=write,
)
