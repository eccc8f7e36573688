"""Write samples as COCO JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from annotations.instances import Instance
from annotations.samples import Sample
from mmsparse.checkpoint.files import open_whole

DIGITS = 2  # of coordinates in pixels


def write_coco(
    path: Path, samples: Sequence[Sample], classes: Sequence[str], images: Path
) -> None:
    """Write a COCO file; names of images are relative to the folder ``images``."""
    text = json.dumps(to_coco(samples, classes, images), ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path) as file:
        file.write(text.encode() + b'\n')


def to_coco(
    samples: Sequence[Sample], classes: Sequence[str], images: Path
) -> dict[str, Any]:
    """Return the content of a COCO file; all ids count from 1."""
    ids = {name: number for number, name in enumerate(classes, start=1)}
    objects = [
        (number, instance)
        for number, sample in enumerate(samples, start=1)
        for instance in sample.instances
    ]
    return dict(
        images=[
            dict(
                id=number,
                file_name=sample.path.relative_to(images).as_posix(),
                width=sample.size[0],
                height=sample.size[1],
            )
            for number, sample in enumerate(samples, start=1)
        ],
        annotations=[
            dict(
                id=number,
                image_id=image,
                category_id=ids[instance.name],
                **_annotation(instance),
            )
            for number, (image, instance) in enumerate(objects, start=1)
        ],
        categories=[dict(id=number, name=name) for name, number in ids.items()],
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
