"""Panoptic quality, with its requirements checked before a training."""

from collections.abc import Iterable
from typing import Any

from mmdet.evaluation.metrics import CocoPanopticMetric, coco_panoptic_metric

from mmsparse.errors import UsageError
from mmsparse.registry import METRICS

INSTALL = 'pip install --no-deps panopticapi-lite==0.2.0'  # it wants an old numpy


@METRICS.register_module()
class PanopticQuality(CocoPanopticMetric):
    """mmdet's ``CocoPanopticMetric``, which says at once what it cannot evaluate.

    The metrics are PQ, SQ and RQ of all classes, of things (``_th``) and stuff
    (``_st``). mmdet's fails after the first epoch if a requirement is not met.

    Args:
        **arguments: Those of mmdet's CocoPanopticMetric.

    Raises:
        UsageError: The package ``panopticapi`` is missing; or the annotation file has
            no class of things or none of stuff, or images that are not JPEG.
    """

    def __init__(self, **arguments: Any) -> None:
        if coco_panoptic_metric.panopticapi is None:
            self.tmp_dir = None  # mmdet removes it in the end
            raise UsageError(
                'The panoptic quality needs the package panopticapi, which is not on '
                f'PyPI under this name; install it by {INSTALL}.'
            )
        super().__init__(**arguments)
        if self.categories is not None:
            _check_categories(self.categories.values())
            _check_images(self._coco_api.imgs.values())


def _check_categories(categories: Iterable[dict[str, Any]]) -> None:
    found = {bool(category.get('isthing')) for category in categories}
    for is_thing, name in ((True, 'things'), (False, 'stuff')):
        if is_thing not in found:
            raise UsageError(
                f'ann_file must have classes of things and of stuff, whose qualities '
                f'are averaged separately; it has none of {name} (isthing='
                f'{int(is_thing)} of its categories).'
            )


def _check_images(images: Iterable[dict[str, Any]]) -> None:
    for image in images:
        if not image['file_name'].endswith('.jpg'):
            raise UsageError(
                "ann_file must have images that end with '.jpg', from which mmdet "
                f'makes the names of the PNG files; got {image["file_name"]!r}.'
            )
