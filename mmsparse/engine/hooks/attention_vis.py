"""Draw attention maps and log attention statistics after every validation."""

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmsparse.registry import HOOKS
from mmsparse.visualization.draw import draw_all
from mmsparse.visualization.recorder import record
from mmsparse.visualization.sample import choose_query_point, record_sample
from mmsparse.visualization.statistics import sample_statistics

DPI = 80


@HOOKS.register_module()
class AttentionVisHook(Hook):
    """Draw attention maps and log attention statistics after every validation.

    The figures of :func:`mmsparse.visualization.draw_all` go to the visualizer's
    backends, for the first images of the validation set and a query point that is
    chosen once per image. The scalars of :func:`mmsparse.visualization.
    sample_statistics`, averaged over these images, are logged.

    Args:
        num_images: Number of images.
        interval: Number of validations between two drawings.

    Raises:
        ValueError: An argument is less than 1; or, before training, the model has no
            layers that can be recorded.
    """

    priority = 'LOW'

    def __init__(self, num_images: int = 2, interval: int = 1) -> None:
        for name, value in (('num_images', num_images), ('interval', interval)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1; got {value}.')
        self.num_images = num_images
        self.interval = interval
        self._validations = 0
        self._points: dict[str, tuple[float, float]] = {}

    def before_train(self, runner: Runner) -> None:
        """Raise ValueError unless the model has layers that can be recorded."""
        with record(runner.model):
            pass

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Draw and log."""
        self._validations += 1
        if self._validations % self.interval:
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        step = runner.epoch if by_epoch else runner.iter
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        training = model.training
        model.eval()
        scalars: dict[str, list[float]] = defaultdict(list)
        dataset = runner.val_dataloader.dataset
        for i in range(min(self.num_images, len(dataset))):
            info = dataset.get_data_info(i)
            path, names = info['img_path'], dataset.metainfo.get('classes') or ()
            sample = record_sample(model, dataset.pipeline.transforms, path, names)
            if path not in self._points:
                self._points[path] = choose_query_point(sample, model.backbone)
            for name, figure in draw_all(sample, self._points[path]):
                title = f'{Path(path).stem}_{name}'
                runner.visualizer.add_image(title, _render(figure), step=step)
            for name, value in sample_statistics(sample, _boxes(info)).items():
                scalars[name].append(value)
        model.train(training)
        means = {name: fmean(values) for name, values in scalars.items()}
        if means:  # full and shunted attention have none
            runner.visualizer.add_scalars(means, step=step)
            text = ', '.join(f'{name} {x:.3f}' for name, x in means.items())
            runner.logger.info(f'Attention statistics: {text}')


def _boxes(info: dict[str, Any]) -> torch.Tensor | None:
    """Return the ground truth boxes of mmdet's data sets, without ignored ones."""
    boxes = [
        instance['bbox']
        for instance in info.get('instances', ())
        if 'bbox' in instance and not instance.get('ignore_flag')
    ]
    return torch.tensor(boxes, dtype=torch.float) if boxes else None


def _render(figure: Figure) -> np.ndarray:
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
