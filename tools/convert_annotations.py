"""Convert annotations of VOC, YOLO or LabelMe to COCO JSON for mmdetection.

A label file belongs to the image with the same name. All faults are reported at once,
with their number and places. Run it for each split, and give the JSON of the first as
--classes of the others: all must have the same classes in the same order.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from _cli import run

from annotations.classes import read_classes
from annotations.coco import write_coco
from annotations.draw import draw_samples
from annotations.images import SUFFIXES, by_name, find_files, read_split
from annotations.instances import LabelFile
from annotations.label_maps import with_background, write_label_maps
from annotations.labelme import NO_CLASSES, read_labelme
from annotations.problems import Problem, Problems
from annotations.samples import Sample, read_samples
from annotations.voc import read_voc
from annotations.yolo import read_yolo

from mmsparse.errors import UsageError

LABEL_SUFFIXES = dict(voc='.xml', yolo='.txt', labelme='.json')
FORMATS = dict(
    voc='XML files of PASCAL VOC, LabelImg or CVAT: boxes',
    yolo='text files of YOLO: boxes or polygons',
    labelme='JSON files of LabelMe: polygons, rectangles and circles',
)
EXAMPLES = """\
examples:
  %(prog)s voc VOC2007/Annotations train.json \\
      --split VOC2007/ImageSets/Main/train.txt
  %(prog)s yolo labels/train train.json --classes data.yaml
  %(prog)s labelme photos train.json --draw 8"""
NAMES = 'classes.txt'  # that programs write into the folder of YOLO's label files


def main() -> int:
    args = parse_args()
    drawn = args.out.with_name(f'{args.out.stem}_drawn')
    check_new([args.out, drawn] if args.draw else [args.out], args.force)
    problems = Problems()
    samples, classes = read(args, problems)
    errors = list(problems.report(invalid=True))
    for text in problems.report(invalid=False):
        print(text)
    if errors and not args.skip_invalid:
        for text in errors:
            print(f'error: {text}', file=sys.stderr)
        print('nothing written; --skip-invalid leaves these out', file=sys.stderr)
        return 1
    for text in errors:
        print(f'left out: {text}')
    print_summary(samples, classes, args.label_maps)
    write = write_label_maps if args.label_maps else write_coco
    write(args.out, samples, classes, args.images)
    if args.draw:
        draw_samples(drawn, samples, classes, args.images, args.draw)
        print(drawn)
    print(args.out)
    return 0


def check_new(paths: Iterable[Path], force: bool) -> None:
    """Raise UsageError if a file, or a folder with files, would be overwritten."""
    for path in paths:
        exists = any(path.iterdir()) if path.is_dir() else path.exists()
        if exists and not force:
            raise UsageError(f'{path} exists; --force overwrites it')


def read(
    args: argparse.Namespace, problems: Problems
) -> tuple[list[Sample], list[str]]:
    """Read samples and names of classes; faults are recorded."""
    images = by_name(find_files(args.images, SUFFIXES), args.images, problems)
    labels, classes = read_labels(args, problems)
    for name in sorted(labels.keys() - images.keys()):
        problems.add(Problem.NO_IMAGE, labels[name].path)
    if not labels.keys() & images.keys():
        label = next((label.path for label in labels.values()), args.labels)
        raise UsageError(
            f'no label file has the name of an image, for example {label} and '
            f'{next(iter(images.values()))}'
        )
    if args.split:
        images = read_split(args.split, images, problems)
    relative = args.format == 'yolo'
    return read_samples(images, labels, classes, problems, relative), classes


def read_labels(
    args: argparse.Namespace, problems: Problems
) -> tuple[dict[str, LabelFile], list[str]]:
    """Read all label files by name, and the names of the classes in order."""
    files = find_files(args.labels, (LABEL_SUFFIXES[args.format],))
    classes = read_classes(args.classes) if args.classes else {}
    if args.format == 'yolo':
        names = args.labels / NAMES
        if not classes and names not in files:
            raise UsageError(
                f'--classes is needed, names or a file such as data.yaml: YOLO labels '
                f'have numbers, and {names} does not exist'
            )
        classes = classes or read_classes([str(names)])
        files = [path for path in files if path != names]
        read_file = partial(read_yolo, classes=classes)
    elif args.format == 'voc':
        read_file = partial(read_voc, one_based=args.one_based)
    else:
        read_file = read_labelme
        classes = {i: name for i, name in classes.items() if name not in NO_CLASSES}
    named = by_name(files, args.labels, problems)
    labels = {name: read_file(path, problems) for name, path in named.items()}
    found = {x.name for label in labels.values() for x in label.instances}
    return labels, list(classes.values()) or sorted(found)


def print_summary(
    samples: Sequence[Sample], classes: Sequence[str], label_maps: bool
) -> None:
    """Print how many images and objects there are, and the classes for a config."""
    counts = Counter(x.name for sample in samples for x in sample.instances)
    numbers = ', '.join(f'{name} {counts[name]}' for name in classes)
    print(f'{len(samples)} images, {counts.total()} objects: {numbers}')
    classes = with_background(classes) if label_maps else classes
    print(f'metainfo = dict(classes={tuple(classes)})')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    formats = parser.add_subparsers(dest='format', required=True)
    common = common_arguments()
    voc, _, labelme = (
        formats.add_parser(name, parents=[common], help=text, description=text)
        for name, text in FORMATS.items()
    )
    voc.add_argument(
        '--one-based',
        action='store_true',
        help='coordinates are pixels from 1, both included, as in PASCAL VOC itself '
        '(default: distances from the border, as LabelImg and CVAT write)',
    )
    labelme.add_argument(
        '--label-maps',
        action='store_true',
        help='write PNG label maps for mmsegmentation into the folder OUT instead',
    )
    parser.set_defaults(label_maps=False)
    args = parser.parse_args()
    args.images = args.images or default_images(args.format, args.labels)
    return args


def common_arguments() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        'labels', type=Path, metavar='LABELS', help='folder of the label files'
    )
    common.add_argument('out', type=Path, metavar='OUT', help='JSON file to write')
    common.add_argument(
        '--images',
        type=Path,
        metavar='DIR',
        help="folder of the images (default: JPEGImages next to VOC's Annotations; "
        "images instead of labels in YOLO's path; LABELS for LabelMe)",
    )
    common.add_argument(
        '--split',
        type=Path,
        metavar='FILE',
        help="use the images that a file lists, as VOC's ImageSets/Main/train.txt "
        '(default: all)',
    )
    common.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='names of the classes in order, or a file: .txt with a name per line, '
        ".yaml of YOLO, .json of COCO (default: LABELS/classes.txt for YOLO's; all "
        'names in LABELS, sorted, for others)',
    )
    common.add_argument(
        '--skip-invalid',
        action='store_true',
        help='leave invalid entries, unknown classes and unreadable images out',
    )
    common.add_argument(
        '--draw',
        type=count,
        default=0,
        metavar='N',
        help='also draw N of the images with their objects into OUT_drawn',
    )
    common.add_argument('--force', action='store_true', help='overwrite OUT')
    return common


def count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'must be at least 0, got {text}')
    return number


def default_images(labels_format: str, labels: Path) -> Path:
    """Return the folder where images usually are."""
    if labels_format == 'voc':
        return labels.parent / 'JPEGImages'
    parts = list(labels.parts)
    if labels_format == 'labelme' or 'labels' not in parts:
        return labels
    last = len(parts) - 1 - parts[::-1].index('labels')
    return Path(*parts[:last], 'images', *parts[last + 1 :])


if __name__ == '__main__':
    run(main, OSError)
