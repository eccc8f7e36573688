"""The pilot of a comparison: measure what its models cost, before they are trained."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from benchmark import Candidate, Stopwatch, measure
from filelock import FileLock
from mmengine.runner import Runner
from training.clock import training_clock
from training.costs import ITERATION, Cost, build_quietly, model_macs
from training.files import write_json
from training.runner import fuse_optimizer, in_new_process

from comparison.comparison import training_config

FILE = 'pilot.json'
ROUNDS = 7  # of timed iterations


def read_costs(
    folder: Path, models: Mapping[str, str], threads: int
) -> dict[str, Cost]:
    """Return the costs of models from a file, which is completed first.

    They are measured once, since they set the length of training runs. Another
    process that shares the folder waits meanwhile.

    Args:
        folder: Folder of the file.
        models: Configs by the names of the models.
        threads: Number of threads.

    Returns:
        The cost of each model by its name.
    """
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f'{FILE}.lock'):
        known = json.loads(path.read_text()) if path.is_file() else {}
        missing = {name: models[name] for name in models if name not in known}
        if missing:
            print(f'pilot of {", ".join(missing)}', flush=True)
            costs = in_new_process(measure_costs, missing, threads)
            known |= {name: asdict(cost) for name, cost in costs.items()}
            write_json(path, known)
    return {name: Cost(**known[name]) for name in models}


def measure_costs(models: Mapping[str, str], threads: int) -> dict[str, Cost]:
    """Measure models in turns."""
    torch.set_num_threads(threads)
    runners = {name: build(name, config) for name, config in models.items()}
    candidates = [training_with_data(name, x) for name, x in runners.items()]
    device = next(next(iter(runners.values())).model.parameters()).device
    measured = measure(candidates, ROUNDS, device, log, training_clock())
    return {
        x.name: Cost(
            macs=model_macs(runners[x.name]),
            iteration_seconds=x.median_seconds(ITERATION),
            peak_bytes=x.peak_bytes,
            parameters=sum(p.numel() for p in runners[x.name].model.parameters()),
        )
        for x in measured
    }


def build(name: str, config: str) -> Runner:
    """Build the runner of a training."""
    cfg = training_config(config, ROUNDS + 1, seed=0)
    fuse_optimizer(cfg)
    runner = build_quietly(cfg, f'row {name}')
    runner.model.init_weights()
    return runner


def training_with_data(name: str, runner: Runner) -> Candidate:
    """Return a timed training iteration, which loads its images, too."""
    batches, model = load_forever(runner), runner.model
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper)

    def run(watch: Stopwatch) -> None:
        model.train()
        with watch.time(ITERATION):
            model.train_step(next(batches), optimizer)

    return Candidate(name, run)


def load_forever(runner: Runner) -> Iterator[Any]:
    """Yield the batches of a training, the same for all models."""
    loader = Runner.build_dataloader(runner._train_dataloader, seed=0)
    return chain.from_iterable(repeat(loader))


def log(line: str) -> None:
    print(f'pilot, {line}', file=sys.stderr, flush=True)
