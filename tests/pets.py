"""Annotations of a small detection data set."""

import json

NAMES = ('cat', 'dog', 'horse')


def write(folder, split, names=NAMES, change=lambda coco: None):
    """Write the annotation file of a split: three images, one box of each class."""
    coco = dict(
        images=[
            dict(id=i, file_name=f'{name}.jpg', width=40, height=30)
            for i, name in enumerate('abc')
        ],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(names)],
        annotations=[
            dict(
                id=i + 1,
                image_id=i,
                category_id=i + 1,
                bbox=[20, 10, 16, 8],
                area=128,
                iscrowd=0,
            )
            for i in range(3)
        ],
    )
    change(coco)
    (folder / f'{split}.json').write_text(json.dumps(coco))
