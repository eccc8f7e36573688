"""The main metrics of the libraries."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The main metric of a library.

    Args:
        key: Its name in the library's results.
        name: Its name in reports.
        scale: Factor from the library's value to percent.
    """

    key: str
    name: str
    scale: float = 1.0


METRICS = {
    'mmpretrain': Metric('accuracy/top1', 'accuracy'),
    'mmseg': Metric('mIoU', 'mIoU'),
    'mmdet': Metric('coco/bbox_mAP', 'box AP', scale=100.0),
}
