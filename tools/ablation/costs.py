"""Measure FLOPs, parameters, iteration time and memory of the variants of a study."""

import contextlib
import copy
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmark import Candidate, Stopwatch, measure
from mmengine.config import Config
from mmengine.runner import Runner

from ablation.length import Length
from ablation.study import Study, variant_config
from ablation.training import check_start
from mmsparse.analysis.flops import count_macs
from mmsparse.errors import UsageError, config_errors

ROUNDS = 10  # of timed iterations
ITERATION = 'iteration'


@dataclass(frozen=True)
class Cost:
    """Cost of a variant.

    Args:
        macs: MACs of the model for one validation image.
        iteration_seconds: Median time of a training iteration, measured in turns with
            the other variants.
        peak_bytes: Peak memory of a training iteration, without weights.
        parameters: Number of parameters.
    """

    macs: int
    iteration_seconds: float
    peak_bytes: int
    parameters: int


def measure_costs(study: Study, length: Length, pretrained: str | None) -> list[Cost]:
    """Build and measure all variants, which also finds mistakes before training."""
    warnings.simplefilter('ignore')
    candidates, macs, parameters = [], [], []
    for variant in study.variants:
        cfg = variant_config(study, variant, length, 0, pretrained)
        runner = build_quietly(cfg, f'variant {variant.name}')
        if pretrained and variant is study.variants[0]:
            check_start(runner.model.backbone, pretrained)
        runner.model.init_weights()
        macs.append(model_macs(runner))
        candidates.append(training_candidate(variant.name, runner))
        parameters.append(sum(x.numel() for x in runner.model.parameters()))
        print(f'{variant.name}: {macs[-1] / 1e6:.1f} MMACs', flush=True)
    measured = measure(candidates, ROUNDS, torch.device('cpu'))
    seconds = [x.median_seconds(ITERATION) for x in measured]
    memory = [x.peak_bytes for x in measured]
    columns = zip(macs, seconds, memory, parameters, strict=True)
    return [Cost(*values) for values in columns]


def build_quietly(cfg: Config, label: str) -> Runner:
    """Build the runner of a training without output; its model is not initialized.

    Args:
        cfg: Config, which is changed.
        label: What is built, for an error.

    Returns:
        The runner, which cannot write logs or checkpoints.

    Raises:
        UsageError: The model cannot be built.
    """
    with (
        TemporaryDirectory() as work_dir,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        cfg.work_dir = work_dir
        # Runners of one name share a visualizer, and its folder, which is removed.
        cfg.experiment_name = Path(work_dir).name
        cfg.visualizer = None  # mmdet's has one name for all
        try:
            with config_errors():
                runner = Runner.from_cfg(cfg)
        except UsageError as error:
            raise UsageError(f'{label}: {error}') from error
    return runner


def model_macs(runner: Runner) -> int:
    """Return the MACs of the model for the first validation image."""
    item = Runner.build_dataloader(runner._test_dataloader).dataset[0]
    batch = {key: [value] for key, value in item.items()}
    # torch's counter hooks into gradients, and fails if a parameter is the query.
    model = copy.deepcopy(runner.model).eval().requires_grad_(False)
    return count_macs(lambda: model.test_step(batch))


def training_candidate(name: str, runner: Runner) -> Candidate:
    """Return a timed training iteration on a fixed batch."""
    loader = Runner.build_dataloader(runner._train_dataloader, seed=0)
    batch, model = next(iter(loader)), runner.model
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper)

    def run(watch: Stopwatch) -> None:
        model.train()
        with watch.time(ITERATION):
            model.train_step(batch, optimizer)

    return Candidate(name, run)
