"""Builds a small data set of handwritten digits for three tasks, without a download.

The 1,797 scans that scikit-learn ships are pasted, colored, on drawn backgrounds.
"""

import argparse
import json
import re
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

MISSING = "error: {}: pip install 'mmsparse[digits]'"
try:
    import cv2
    import numpy as np
    from digits.scenes import Digit, draw_scene, draw_single, tight_box
    from numpy.random import Generator
    from numpy.typing import NDArray
    from PIL import Image
    from pycocotools import mask as coco_mask
    from tqdm import tqdm
except ImportError as error:
    sys.exit(MISSING.format(error))

LAYOUT = """\
written below DIR, all of the same scans:
  classification/{train,val}/<0..9>/<scan>_<look>.jpg   one digit, 64x64
  detection/{train,val}/<scene>.jpg                     two to six digits, 128x128
  detection/annotations/{train,val}.json                COCO: boxes and masks
  segmentation/images/{training,validation}/            the same scenes again
  segmentation/annotations/{training,validation}/       ADE20K: label maps, PNG,
                                                        0 background, 1..10 digits
  meta.json                                             the settings

No scan is in both training and validation. The same seed gives the same files."""

FORMAT = 'mmsparse digits'
VERSION = 2  # of the files: raise it when what is drawn or written changes
SPLITS = ('train', 'val')
ADE_SPLITS = {'train': 'training', 'val': 'validation'}
CLASSES = tuple('0123456789')
VAL_SCANS = 360  # of 1,797
SCENE_SIZE = 128
SINGLE_SIZE = 64
# Wider in training: its features are also to serve the scenes, with smaller digits.
SINGLE_SIDES = {'train': (28, 60), 'val': (40, 60)}
PALETTE = (
    *((0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200)),
    *((245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230)),
    *((210, 245, 60), (250, 190, 212)),
)
# The names of the files written here; no other file is ever removed.
OURS = re.compile(
    r'meta\.json'
    r'|classification/(train|val)/\d/\d{4}_\d+\.jpg'
    r'|detection/(train|val)/\d{5,}\.jpg'
    r'|detection/annotations/(train|val)\.json'
    r'|segmentation/images/(training|validation)/\d{5,}\.jpg'
    r'|segmentation/annotations/(training|validation)/\d{5,}\.png'
)


@dataclass(frozen=True)
class Settings:
    """What the files depend on.

    Args:
        seed: 0 to 2**32 - 1.
        train_scenes: Scenes with training scans.
        val_scenes: Scenes with validation scans.
        train_looks: Pictures of each training scan for classification.
        val_looks: Pictures of each validation scan for classification.

    Raises:
        ValueError: If one of them is out of its range.
    """

    seed: int
    train_scenes: int
    val_scenes: int
    train_looks: int
    val_looks: int

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f'--seed must be 0 to 2**32 - 1, got {self.seed}')
        for name in ('train_scenes', 'val_scenes', 'train_looks', 'val_looks'):
            if getattr(self, name) < 1:
                option = '--' + name.replace('_', '-')
                value = getattr(self, name)
                raise ValueError(f'{option} must be at least 1, got {value}')

    def scenes(self, split: str) -> int:
        return self.train_scenes if split == 'train' else self.val_scenes

    def attention_maps(self, split: str) -> int:
        return self.train_looks if split == 'train' else self.val_looks

    def generator(self, *key: int) -> Generator:
        """The random stream of one picture, whatever else is drawn."""
        return np.random.default_rng((self.seed, *key))


@dataclass(frozen=True)
class Scans:
    """The handwritten digits.

    Args:
        images: 0 (paper) to 16 (ink), (S, 8, 8).
        labels: What they say, 0 to 9, (S,).
        splits: Indices of the scans of 'train' and of 'val'.
    """

    images: NDArray[np.floating]
    labels: NDArray[np.integer]
    splits: dict[str, NDArray[np.integer]]


def main() -> None:
    """Run the command line; every foreseeable error ends in one line."""
    args = parse_args()
    cv2.setNumThreads(0)  # for pictures this small, threads only cost
    # Makes a terminated build clean up as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = Settings(
            args.seed,
            args.train_scenes,
            args.val_scenes,
            args.train_looks,
            args.val_looks,
        )
        prepare(args.out.resolve(), settings, args.force)
    except OSError as error:
        sys.exit(f'error: cannot write {args.out}: {error}')
    except ImportError as error:
        sys.exit(MISSING.format(error))
    except ValueError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('interrupted: nothing was written')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=LAYOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('data/digits'),
        metavar='DIR',
        help='folder to write (%(default)s)',
    )
    for option, default, text in (
        ('--train-scenes', 2100, 'scenes for training'),
        ('--val-scenes', 200, 'scenes for validation'),
        ('--train-looks', 6, 'pictures of each training scan for classification'),
        ('--val-looks', 2, 'pictures of each validation scan for classification'),
        ('--seed', 0, 'seed of everything random'),
    ):
        text = f'{text} (%(default)s)'
        parser.add_argument(option, type=int, default=default, metavar='N', help=text)
    parser.add_argument(
        '--force',
        action='store_true',
        help='build again, in place of digits that this program wrote to DIR',
    )
    return parser.parse_args()


def prepare(out: Path, settings: Settings, force: bool) -> None:
    """Build the three layouts below `out`, all at once or not at all.

    Args:
        out: The folder; its parents are made.
        settings: What to build.
        force: Whether to build in the place of digits that are there.

    Raises:
        ValueError: If `out` holds something that must not be replaced.
        OSError: If it cannot be written.
        ImportError: If scikit-learn is missing.
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
    for what, count in counts.items():
        print(f'{count:7} {what}')


# What is there already


def is_complete(out: Path, settings: Settings) -> bool:
    """Whether `out` holds what these settings make, going by the number of files."""
    ours = sum(bool(OURS.fullmatch(name)) for name in list_files(out))
    return read_meta(out) == describe(settings, ours)


def check_replaceable(out: Path, force: bool) -> None:
    """Raise a ValueError if a build must not take the place of `out`."""
    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is not a folder')
    files = list_files(out)
    if not files:
        return
    if not read_meta(out):
        raise ValueError(f'{out} holds other files than digits: choose another --out')
    if not force:
        raise ValueError(
            f'{out} has other settings or is incomplete: replace it with --force'
        )
    for name in files:
        if not OURS.fullmatch(name):
            raise ValueError(f'{out} also holds {name}, not made here: move it first')


def list_files(folder: Path) -> list[str]:
    """Names, relative to the folder, of all that is not a plain folder in it."""
    paths = (path for path in folder.rglob('*') if path.is_symlink() or path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def read_meta(out: Path) -> dict:
    """Read our meta.json; empty if there is none."""
    try:
        meta = json.loads((out / 'meta.json').read_text())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and meta.get('format') == FORMAT else {}


def describe(settings: Settings, files: int) -> dict:
    """What meta.json says of so many files made with these settings."""
    return dict(format=FORMAT, version=VERSION, settings=asdict(settings), files=files)


# Building


def load_scans(seed: int) -> Scans:
    """Load scikit-learn's scans and split them, each class in the same proportion."""
    # Slow to import, and not needed to find that all is there already.
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
    """Write all files below `out`; return what there is of what."""
    total = sum(
        settings.scenes(split)
        + settings.attention_maps(split) * len(scans.splits[split])
        for split in SPLITS
    )
    counts = {}
    with tqdm(total=total, unit='pictures', desc='digits') as progress:
        for split in SPLITS:
            singles = write_singles(out, split, scans, settings, progress)
            digits = write_scenes(out, split, scans, settings, progress)
            counts[f'{split} pictures of one digit'] = singles
            counts[f'{split} scenes'] = settings.scenes(split)
            counts[f'{split} digits in scenes'] = digits
    files = len(list_files(out)) + 1  # and this one
    write_json(out / 'meta.json', describe(settings, files))
    return counts


def write_singles(
    out: Path, split: str, scans: Scans, settings: Settings, progress: tqdm
) -> int:
    """Write the pictures of one digit in folders by class; return how many."""
    root = out / 'classification' / split
    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for scan in scans.splits[split]:
        for look in range(settings.attention_maps(split)):
            rng = settings.generator(SPLITS.index(split), 1, scan, look)
            sides = SINGLE_SIDES[split]
            picture = draw_single(scans.images[scan], SINGLE_SIZE, sides, rng)
            name = CLASSES[scans.labels[scan]]
            save_jpeg(picture, root / name / f'{scan:04}_{look}.jpg')
            progress.update()
    return settings.attention_maps(split) * len(scans.splits[split])


def write_scenes(
    out: Path, split: str, scans: Scans, settings: Settings, progress: tqdm
) -> int:
    """Write the scenes in the layouts of COCO and of ADE20K; return their digits."""
    detection = out / 'detection' / split
    images = out / 'segmentation' / 'images' / ADE_SPLITS[split]
    label_maps = out / 'segmentation' / 'annotations' / ADE_SPLITS[split]
    for folder in (detection, images, label_maps):
        folder.mkdir(parents=True)
    scenes = []
    for index in range(settings.scenes(split)):
        rng = settings.generator(SPLITS.index(split), 0, index)
        picture, digits = draw_scene(
            scans.images, scans.labels, scans.splits[split], SCENE_SIZE, rng
        )
        name = f'{index:05}'
        save_jpeg(picture, detection / f'{name}.jpg')
        save_jpeg(picture, images / f'{name}.jpg')
        save_label_map(digits, label_maps / f'{name}.png')
        scenes.append(digits)
        progress.update()
    annotations = out / 'detection' / 'annotations' / f'{split}.json'
    annotations.parent.mkdir(exist_ok=True)
    write_json(annotations, to_coco(scenes))
    return sum(len(digits) for digits in scenes)


def save_jpeg(picture: NDArray[np.uint8], path: Path) -> None:
    """Save with full chroma: half of it would smear the smallest strokes."""
    Image.fromarray(picture).save(path, quality=85, subsampling=0, optimize=True)


def save_label_map(digits: Iterable[Digit], path: Path) -> None:
    """Save class indices, 0 where no digit is, with colors to look at them."""
    label_map = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
    for digit in digits:
        label_map[digit.mask] = digit.label + 1
    image = Image.fromarray(label_map)
    image.putpalette([channel for color in PALETTE for channel in color])
    image.save(path)


def to_coco(scenes: list[list[Digit]]) -> dict:
    """Describe the digits as COCO does, and by `scan`, scikit-learn's index."""
    size = dict(width=SCENE_SIZE, height=SCENE_SIZE)
    digits = [(index, digit) for index, scene in enumerate(scenes) for digit in scene]
    return dict(
        info=dict(description=FORMAT, version=str(VERSION)),
        images=[
            dict(id=index, file_name=f'{index:05}.jpg', **size)
            for index in range(len(scenes))
        ],
        annotations=[
            dict(id=number, image_id=index, **to_annotation(digit))
            for number, (index, digit) in enumerate(digits, start=1)
        ],
        categories=[
            dict(id=number, name=name, supercategory='digit')
            for number, name in enumerate(CLASSES, start=1)
        ],
    )


def to_annotation(digit: Digit) -> dict:
    """Describe one digit: tight box, visible area and mask as compressed runs."""
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


if __name__ == '__main__':
    main()
