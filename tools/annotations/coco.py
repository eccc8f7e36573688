"""Write samples as COCO JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from annotations.instances import Instance
from annotations.samples import Sample
from mmsparse.checkpoint.files import open_whole

DIGITS = 2  # of coordinates in pixels


def write_coco(
    path: Path,
    samples: Sequence[Sample],
    classes: Sequence[str] | Mapping[str, int],
    images: Path,
    image_ids: Sequence[int] = (),
) -> None:
    """Write a COCO file, see ``to_coco``."""
    content = to_coco(samples, classes, images, image_ids)
    text = json.dumps(content, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path) as file:
        file.write(text.encode() + b'\n')


def to_coco(
    samples: Sequence[Sample],
    classes: Sequence[str] | Mapping[str, int],
    images: Path,
    image_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the content of a COCO file.

    Args:
        samples: Images with their objects.
        classes: Names of the classes; or their ids by name, which else count from 1.
        images: Folder that the names of images are relative to.
        image_ids: Ids of the samples, which else count from 1.

    Returns:
        Images, annotations and categories.
    """
    if not isinstance(classes, Mapping):
        classes = {name: number for number, name in enumerate(classes, start=1)}
    numbers = image_ids or range(1, len(samples) + 1)
    numbered = list(zip(numbers, samples, strict=True))
    objects = [(number, x) for number, sample in numbered for x in sample.instances]
    return dict(
        images=[
            dict(
                id=number,
                file_name=sample.path.relative_to(images).as_posix(),
                width=sample.size[0],
                height=sample.size[1],
            )
            for number, sample in numbered
        ],
        annotations=[
            dict(
                id=number,
                image_id=image,
                category_id=classes[instance.name],
                **_annotation(instance),
            )
            for number, (image, instance) in enumerate(objects, start=1)
        ],
        categories=[dict(id=number, name=name) for name, number in classes.items()],
    )


def _annotation(instance: Instance) -> dict[str, Any]:
    left, top, right, bottom = instance.box.tolist()
    box = (left, top, right - left, bottom - top)
    return dict(
        bbox=[round(number, DIGITS) for number in box],
        area=round(instance.area(), DIGITS),
        iscrowd=int(instance.crowd),
        segmentation=[
            polygon.round(DIGITS).ravel().tolist() for polygon in instance.polygons
        ],
    )
