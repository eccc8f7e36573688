"""Measure FLOPs, parameters, iteration time and memory of the variants of a study."""

import warnings

import torch
from benchmark import Candidate, Stopwatch, measure
from mmengine.runner import Runner
from training.clock import training_clock
from training.costs import ITERATION, Cost, build_quietly, model_macs
from training.length import Length
from training.start import check_start

from ablation.study import Study, variant_config

ROUNDS = 10  # of timed iterations


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
    device = torch.device('cpu')
    measured = measure(candidates, ROUNDS, device, clock=training_clock())
    seconds = [x.median_seconds(ITERATION) for x in measured]
    memory = [x.peak_bytes for x in measured]
    columns = zip(macs, seconds, memory, parameters, strict=True)
    return [Cost(*values) for values in columns]


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
