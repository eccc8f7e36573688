"""ONNX files in onnxruntime and OpenVINO, and their models in PyTorch."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from benchmark.timing import Candidate, Stopwatch
from mmsparse.apis import build_model
from mmsparse.deploy.export import build_graph, export_onnx
from mmsparse.deploy.runtimes import installed_runtimes, load_session

EAGER, TIME = 'PyTorch', 'time'


def export_candidates(
    cfg: Config,
    size: tuple[int, int],
    batch_size: int,
    samplers: Sequence[str],
    folder: Path,
) -> list[Candidate]:
    """Export a model with random weights, and prepare its runs on images of noise.

    Args:
        cfg: Config of a model that can be exported.
        size: Height and width of the images.
        batch_size: Number of images.
        samplers: How files sample feature maps, one file for each.
        folder: Where the files are written.

    Returns:
        The model in PyTorch, then every file in every runtime that is installed, with
        as many threads as torch.
    """
    cfg = copy.deepcopy(cfg)
    if 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None
    graph = build_graph(build_model(cfg), size)
    shape = (batch_size, graph.channels, *size)
    image = 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    candidates = [Candidate(EAGER, partial(_run, graph, image))]
    for sampler in samplers:
        path = folder / f'{sampler}.onnx'
        export_onnx(graph, path, sampler=sampler)
        for runtime in installed_runtimes():
            session = load_session(path, runtime, torch.get_num_threads())
            candidates.append(
                Candidate(
                    f'{runtime}, {sampler}',
                    partial(_run, session, image.numpy()),
                    in_torch=False,
                )
            )
    return candidates


def _run(model: Callable[[Any], Any], image: Any, watch: Stopwatch) -> None:
    with torch.no_grad(), watch.time(TIME):
        model(image)
