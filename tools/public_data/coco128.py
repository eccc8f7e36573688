"""COCO128: photographs of COCO with boxes, outlines, segments and label maps."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from _progress import Progress
from annotations.coco import write_coco
from annotations.draw import draw_sample, palette, spread
from annotations.images import by_name, find_files
from annotations.instances import Instance, LabelFile
from annotations.problems import Problem, Problems
from annotations.samples import Sample, read_samples
from annotations.yolo import read_yolo
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask

from mmsparse.datasets.panoptic import segment_ids
from mmsparse.errors import UsageError
from public_data.data_set import DataSet, copy_files
from public_data.label_maps import blend, read_label_map, save_label_map

SPLITS = {'train2017': 'training', 'val2017': 'validation'}  # of COCO and of ADE20K
BOXES = Path('object_detection', 'labels')
OUTLINES = Path('instance_segmentation', 'labels')
PANOPTIC = Path('panoptic_segmentation', 'annotations')
SEMANTIC = Path('semantic_segmentation', 'masks')
COVERED = 0.5  # overlap (IoU) of outline and segment, below which they do not agree
LAYOUT = """\
reads COCO128 as Lightly publishes it, with the folders images, object_detection,
instance_segmentation, panoptic_segmentation and semantic_segmentation; writes for
CocoDataset and CocoPanopticDataset of mmdet, in COCO's layout and with its ids
  {train,val}2017/*.jpg
  annotations/boxes_{train,val}2017.json       128 images: boxes
  annotations/instances_{train,val}2017.json   100 images: boxes and outlines
  annotations/panoptic_{train,val}2017.json    100 images: segments, in PNG files
  annotations/panoptic_{train,val}2017/*.png
and for ADE20KDataset of mmsegmentation
  ade/images/{training,validation}/*.jpg
  ade/annotations/{training,validation}/*.png  labels 1 to 133, in the order of
                                               categories; 0 is ignored

Configs for COCO run on it as they are with --out data/coco. Faults of the labels are
printed with their number and files."""


@dataclass(frozen=True)
class Categories:
    """Categories of COCO's panoptic annotations.

    Args:
        ids: Ids of all by their names: things, then stuff.
        things: Ids of things by their names.
    """

    ids: dict[str, int]
    things: dict[str, int]

    def labels(self) -> NDArray[np.uint8]:
        """Return the label of each id in label maps, (256,); 0 for others."""
        table = np.zeros(256, np.uint8)
        table[list(self.ids.values())] = np.arange(1, len(self.ids) + 1)
        return table


@dataclass
class Faults:
    """Faults of the labels: those of any data set, and those of outlines."""

    problems: Problems = field(default_factory=Problems)
    groups: list[str] = field(default_factory=list)
    poor: list[str] = field(default_factory=list)

    def report(self) -> Iterator[str]:
        """Yield a line per fault; raise UsageError for one that forbids writing."""
        if errors := list(self.problems.report(invalid=True)):
            raise UsageError('; '.join(errors))
        yield from self.problems.report(invalid=False)
        for text, names in (
            ('groups outlined as one object, iscrowd=1', self.groups),
            (
                'outlines that overlap less than half with their segment, kept',
                self.poor,
            ),
        ):
            if names:
                yield f'{text}: {len(names)}: {", ".join(sorted(names))}'


def count(root: Path) -> dict[str, int]:
    counts = {}
    for split in SPLITS:
        for name, pattern in (
            ('images', f'images/{split}/*.jpg'),
            ('box labels', f'{BOXES}/{split}/*.txt'),
            ('outline labels', f'{OUTLINES}/{split}/*.txt'),
            ('panoptic annotation files', f'{PANOPTIC}/panoptic_{split}.json'),
            ('panoptic segment maps', f'{PANOPTIC}/panoptic_{split}/*.png'),
            ('semantic label maps', f'{SEMANTIC}/{split}/*.png'),
        ):
            counts[f'{name} ({pattern})'] = len(list(root.glob(pattern)))
    return counts


def draw(root: Path, number: int) -> list[Image.Image]:
    """Draw samples with outlines, and as many with label maps."""
    panoptic = read_panoptic(root, 'train2017')
    categories = read_categories(panoptic)
    outlined = read_outlines(root, 'train2017', panoptic, categories, Faults())
    outlined = spread([sample for sample in outlined if sample.instances], number)
    colors = palette(len(categories.ids))
    by_class = dict(zip(categories.ids, colors, strict=True))
    tiles = [draw_sample(sample, by_class) for sample in outlined[::2]]
    for sample in outlined[1::2]:
        labels = read_semantic(root, 'train2017', sample.path, categories)
        tiles.append(blend(sample.path, labels, [(0, 0, 0), *colors]))
    return tiles


def write(root: Path, out: Path) -> Iterator[str]:
    faults = Faults()
    for split in SPLITS:
        panoptic = read_panoptic(root, split)
        categories = read_categories(panoptic)
        boxes = read_boxes(root, split, categories, faults.problems)
        outlined = read_outlines(root, split, panoptic, categories, faults)
        for name, samples in (('boxes', boxes), ('instances', outlined)):
            path = out / 'annotations' / f'{name}_{split}.json'
            ids = [int(sample.path.stem) for sample in samples]
            folder = root / 'images' / split
            write_coco(path, samples, categories.things, folder, ids)
            number = sum(len(sample.instances) for sample in samples)
            yield f'{split}: {len(samples)} images, {number} objects: {path.name}'
        copy_panoptic(root, out, split)
        write_semantic(root, out, split, [x.path for x in outlined], categories)
        yield f'{split}: {len(outlined)} images with segments and label maps'
        copy_files(split, ((x.path, out / split / x.path.name) for x in boxes))
    yield from faults.report()


def read_panoptic(root: Path, split: str) -> dict[str, Any]:
    """Return COCO's panoptic annotations, or raise UsageError."""
    path = root / PANOPTIC / f'panoptic_{split}.json'
    try:
        content = json.loads(path.read_text())
        missing = {'images', 'annotations', 'categories'} - content.keys()
    except (ValueError, AttributeError) as error:
        raise UsageError(f'{path} is damaged ({error}): repeat the download') from error
    if missing:
        raise UsageError(
            f'{path} has no {", ".join(sorted(missing))}: expected annotations in '
            "COCO's panoptic format"
        )
    return content


def read_categories(panoptic: dict[str, Any]) -> Categories:
    ordered = sorted(panoptic['categories'], key=lambda x: (not x['isthing'], x['id']))
    return Categories(
        ids={x['name']: x['id'] for x in ordered},
        things={x['name']: x['id'] for x in ordered if x['isthing']},
    )


def read_boxes(
    root: Path, split: str, categories: Categories, problems: Problems
) -> list[Sample]:
    """Return all images with boxes; their classes count from 0."""
    images = find_named(root / 'images' / split, '.jpg', problems)
    paths = find_named(root / BOXES / split, '.txt', problems)
    for name in paths.keys() - images.keys():
        problems.add(Problem.NO_IMAGE, paths.pop(name).relative_to(root))
    classes = dict(enumerate(categories.things))
    labels = {name: read_yolo(x, problems, classes) for name, x in paths.items()}
    return read_samples(images, labels, categories.things, problems, relative=True)


def read_outlines(
    root: Path,
    split: str,
    panoptic: dict[str, Any],
    categories: Categories,
    faults: Faults,
) -> list[Sample]:
    """Return the images with outlines; their classes are ids of categories.

    The publisher drew them around segments, in the same order, groups included.
    """
    folder = root / 'images' / split
    images = find_named(folder, '.jpg', faults.problems)
    classes = {number: name for name, number in categories.things.items()}
    labels = {}
    annotations = sorted(panoptic['annotations'], key=lambda x: x['file_name'])
    with Progress(f'{split} outlines', len(annotations), 'files') as progress:
        for annotation in annotations:
            name = Path(annotation['file_name']).stem
            path = root / OUTLINES / split / f'{name}.txt'
            if name not in images or not path.is_file():
                raise UsageError(f'{path} and {folder / name}.jpg are not both there')
            label = read_yolo(path, faults.problems, classes)
            maps = root / PANOPTIC / f'panoptic_{split}'
            labels[name] = compare(label, annotation, categories, maps, faults)
            progress.update()
    labeled = {name: images[name] for name in labels}
    return read_samples(
        labeled, labels, categories.things, faults.problems, relative=True
    )


def compare(
    label: LabelFile,
    annotation: dict[str, Any],
    categories: Categories,
    maps: Path,
    faults: Faults,
) -> LabelFile:
    """Compare outlines with their segments.

    Args:
        label: Outlines, relative to the size of the image.
        annotation: Segments of the image.
        categories: The categories.
        maps: Folder of the maps with the ids of segments.
        faults: Where groups and poor outlines are noted.

    Returns:
        The outlines, with the ``iscrowd`` of their segments.
    """
    things = set(categories.things.values())
    segments = [x for x in annotation['segments_info'] if x['category_id'] in things]
    found = [categories.things[x.name] for x in label.instances]
    if found != [x['category_id'] for x in segments]:
        raise UsageError(
            f'{label.path} has {len(found)} objects, other than the {len(segments)} '
            'things of its panoptic annotation: the download is incomplete or changed'
        )
    ids = segment_ids((maps / annotation['file_name']).read_bytes())
    instances = []
    for instance, segment in zip(label.instances, segments, strict=True):
        name = f'{label.path.stem} ({instance.name})'
        crowd = bool(segment['iscrowd'])
        if crowd:
            faults.groups.append(name)
        elif overlap(instance, ids == segment['id']) < COVERED:
            faults.poor.append(name)
        instances.append(replace(instance, crowd=crowd))
    return replace(label, instances=tuple(instances))


def overlap(instance: Instance, segment: NDArray[np.bool_]) -> float:
    """Return the intersection over union of relative outlines and a mask, (H, W)."""
    height, width = segment.shape
    outlines = [x.ravel().tolist() for x in instance.scaled((width, height)).polygons]
    inside = mask.decode(mask.merge(mask.frPyObjects(outlines, height, width))) == 1
    return float((inside & segment).sum() / (inside | segment).sum())


def find_named(folder: Path, suffix: str, problems: Problems) -> dict[str, Path]:
    return by_name(find_files(folder, (suffix,)), folder, problems)


def copy_panoptic(root: Path, out: Path, split: str) -> None:
    """Copy segments, which mmdet reads as they are."""
    maps = sorted((root / PANOPTIC / f'panoptic_{split}').glob('*.png'))
    files = [root / PANOPTIC / f'panoptic_{split}.json', *maps]
    targets = (out / 'annotations' / x.relative_to(root / PANOPTIC) for x in files)
    copy_files(f'{split} segments', zip(files, targets, strict=True))


def write_semantic(
    root: Path, out: Path, split: str, images: Sequence[Path], categories: Categories
) -> None:
    """Write images and label maps as those of ADE20K, with 0 for no class."""
    folder = out / 'ade' / 'annotations' / SPLITS[split]
    folder.mkdir(parents=True)
    colors = [(0, 0, 0), *palette(len(categories.ids))]
    with Progress(f'{split} label maps', len(images), 'files') as progress:
        for image in images:
            labels = read_semantic(root, split, image, categories)
            save_label_map(labels, colors, folder / f'{image.stem}.png')
            progress.update()
    target = out / 'ade' / 'images' / SPLITS[split]
    copy_files(f'{split} images', ((path, target / path.name) for path in images))


def read_semantic(
    root: Path, split: str, image: Path, categories: Categories
) -> NDArray[np.uint8]:
    """Return labels 1 to 133 of an image, and 0 for none; they are checked."""
    path = root / SEMANTIC / split / f'{image.stem}.png'
    ids = read_label_map(path, image)
    if unknown := set(np.unique(ids)) - {0, *categories.ids.values()}:
        raise UsageError(
            f'{path} has the label {min(unknown)}, which is no category of COCO: the '
            'download is changed'
        )
    return categories.labels()[ids]


def expected_counts() -> dict[str, int]:
    numbers = (128, 128, 100, 1, 100, 100) * len(SPLITS)
    return dict(zip(count(Path()), numbers, strict=True))


COCO128 = DataSet(
    summary='256 photographs of COCO, with boxes, outlines, segments and label maps',
    layout=LAYOUT,
    markers=(str(PANOPTIC.parent), str(BOXES.parent)),
    counts=expected_counts(),
    count=count,
    draw=draw,
    write=write,
)
