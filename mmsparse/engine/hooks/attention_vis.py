"""Pictures of what a model looks at while it is trained, and their numbers."""

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmsparse.evaluation.kept_token_recall import boxes_with_tokens
from mmsparse.registry import HOOKS
from mmsparse.visualization.drawings import draw_all
from mmsparse.visualization.measures import offset_spread, routing_use
from mmsparse.visualization.recorder import record
from mmsparse.visualization.sample import Sample, choose_point, view

DPI = 80


@HOOKS.register_module()
class AttentionVisHook(Hook):
    """Draw what the model looks at after every validation, and log its numbers.

    Drawn are the first pictures of the validation data, at a point that is chosen once
    and kept, as :func:`draw_all` draws them; they go to the back-ends of the host's
    visualizer. Logged, as means over these pictures and the layers of a stage, are

    - ``offset_spread/stage_3``: how far keys of deformable attention leave their grid;
    - ``routing_entropy/stage_2``, ``never_routed/stage_2``: how alike regions are
      routed to, and the part that no region routes to;
    - ``kept_token_recall/layer_1``: the part of the boxes of the ground truth that
      keep a token, where a Focus-DETR is trained and the data have boxes.

    Args:
        num_pictures: How many pictures.
        interval: Validations from one drawing to the next.

    Raises:
        ValueError: An argument is less than 1; or, as training begins, the model has no
            part to look at.
    """

    priority = 'LOW'

    def __init__(self, num_pictures: int = 2, interval: int = 1) -> None:
        for name, value in (('num_pictures', num_pictures), ('interval', interval)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1; got {value}.')
        self.num_pictures = num_pictures
        self.interval = interval
        self._validations = 0
        self._points: dict[str, tuple[float, float]] = {}

    def before_train(self, runner: Runner) -> None:
        """See whether there is anything to look at.

        Args:
            runner: Has the model.
        """
        with record(runner.model):
            pass

    @master_only
    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Draw and log.

        Args:
            runner: Has the model, the data and the visualizer.
            metrics: Not used.
        """
        self._validations += 1
        if self._validations % self.interval:
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        step = runner.epoch if by_epoch else runner.iter
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        training = model.training
        model.eval()
        numbers: dict[str, list[float]] = defaultdict(list)
        dataset = runner.val_dataloader.dataset
        for i in range(min(self.num_pictures, len(dataset))):
            info = dataset.get_data_info(i)
            names = dataset.metainfo.get('classes') or ()
            scene = view(model, dataset.pipeline.transforms, info['img_path'], names)
            self._draw(runner, model, scene, info['img_path'], step)
            for name, value in attention_statistics(scene, _boxes(info)).items():
                numbers[name].append(value)
        model.train(training)
        means = {name: fmean(values) for name, values in numbers.items()}
        if not means:
            return  # there are no numbers of full and of shunted attention
        runner.visualizer.add_scalars(means, step=step)
        runner.logger.info(
            'Looks: ' + ', '.join(f'{name} {x:.3f}' for name, x in means.items())
        )

    def _draw(
        self, runner: Runner, model: Any, scene: Sample, path: str, step: int
    ) -> None:
        if path not in self._points:
            self._points[path] = choose_point(scene, model.backbone)
        for name, figure in draw_all(scene, self._points[path]):
            title = f'looks_{Path(path).stem}_{name}'
            runner.visualizer.add_image(title, _as_image(figure), step=step)


def attention_statistics(
    scene: Sample, boxes: torch.Tensor | None = None
) -> dict[str, float]:
    """Measure what a model looks at.

    Args:
        scene: A picture and what was seen of it.
        boxes: Ground truth (x1, y1, x2, y2) in pixels of the picture, (M, 4).

    Returns:
        The numbers that :class:`AttentionVisHook` logs.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for seen in scene.seen.layers:
        stage = seen.stage.replace(' ', '_')
        if hasattr(seen.layer, 'sampling_locations'):
            found[f'offset_spread/{stage}'].append(offset_spread(seen.layer, seen.x))
        if hasattr(seen.layer, 'regions'):
            use = routing_use(seen.layer, seen.x)
            found[f'routing_entropy/{stage}'].append(use.entropy)
            found[f'never_routed/{stage}'].append(use.never)
    numbers = {name: fmean(values) for name, values in found.items()}
    tokens = scene.seen.tokens
    if tokens is not None and boxes is not None and len(boxes):
        ends = boxes.new_tensor(scene.frame.size[::-1])
        corners = scene.frame.to_input(boxes.unflatten(-1, (2, 2))) / ends
        corners = torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)
        kept, centers = tokens.kept.kept[0].cpu(), tokens.kept.centers[0].cpu()
        hits = boxes_with_tokens(corners, centers, kept).float().mean(1)
        for i, recall in enumerate(hits.tolist(), start=1):
            numbers[f'kept_token_recall/layer_{i}'] = recall
    return numbers


def _boxes(info: dict[str, Any]) -> torch.Tensor | None:
    """The ground truth that counts, as mmdet's data sets tell it."""
    instances = [x for x in info.get('instances', ()) if not x.get('ignore_flag', 0)]
    if not instances or 'bbox' not in instances[0]:
        return None
    return torch.tensor([x['bbox'] for x in instances], dtype=torch.float)


def _as_image(figure: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
