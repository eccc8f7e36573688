"""What a validation finds for each class."""

from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from training.metrics import Metric


class Evaluation(Hook):
    """Collect the metrics, confusions and mistakes of the last validation."""

    def __init__(self) -> None:
        self.iteration = -1  # of the last validation
        self.metrics: dict[str, float] = {}
        self.classes: list[str] = []
        self.confusion: np.ndarray | None = None  # (true classes, predicted classes)
        self.mistakes: list[int] = []  # indices of images

    def before_val_epoch(self, runner: Runner) -> None:
        """Forget the last validation."""
        self.start(runner.val_dataloader.dataset.metainfo['classes'])

    def before_test_epoch(self, runner: Runner) -> None:
        """Forget the last validation."""
        self.start(runner.test_dataloader.dataset.metainfo['classes'])

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: list[BaseDataElement] | None = None,
    ) -> None:
        """Add the predictions of a batch."""
        for sample in outputs:
            self.add(sample)

    after_test_iter = after_val_iter

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Keep the metrics."""
        self.metrics, self.iteration = metrics, runner.iter

    def value(self, metric: Metric) -> float:
        """Return a metric in percent; it is missing if a detector finds nothing."""
        return float(self.metrics.get(metric.key, 0)) * metric.scale

    after_test_epoch = after_val_epoch

    def start(self, classes: list[str]) -> None:
        """Forget the validation before."""
        self.classes = list(classes)
        self.confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        self.mistakes, self.images = [], 0

    def add(self, sample: BaseDataElement) -> None:
        """Add the prediction for an image."""
        if 'pred_label' in sample:
            truth, guess = int(sample.gt_label), int(sample.pred_label)
            self.confusion[truth, guess] += 1
            if truth != guess:
                self.mistakes.append(self.images)
        elif 'pred_sem_seg' in sample:
            truth = sample.gt_sem_seg.data.cpu().numpy().ravel()
            guess = sample.pred_sem_seg.data.cpu().numpy().ravel()
            count = len(self.classes)
            known = truth < count  # others are ignored
            pairs = truth[known].astype(int) * count + guess[known]
            self.confusion += np.bincount(pairs, minlength=count**2).reshape(
                count, count
            )
        self.images += 1

    def tables(self) -> dict[str, Any]:
        """Return all as plain data."""
        metrics = {name: float(value) for name, value in self.metrics.items()}
        return dict(
            classes=self.classes, metrics=metrics, confusion=self.confusion.tolist()
        )
