"""A job of some minutes on one GPU: is everything right, how fast, and what limits it.

Sections run in the order of their worth, each within what the reserves of later ones
leave of the budget. Results are written as JSON after every measurement, and the other
files after every section; ``--resume --budget 0`` writes those of a job that was cut
off.
"""

import argparse

import torch

from benchmark.gpu.correctness import check_ops
from benchmark.gpu.encoder import time_encoder
from benchmark.gpu.hardware import measure_ceilings, time_depthwise
from benchmark.gpu.job import Files, Job, Section
from benchmark.gpu.models import (
    count_launches,
    list_kernels,
    time_compiled,
    time_latency,
    time_models,
)
from benchmark.gpu.operators import time_ops
from mmsparse.errors import UsageError

SECTIONS = {
    section.name: section
    for section in (
        Section(
            'ceilings',
            'What the device reaches: matrix products of 8192x8192, and a copy, '
            'counting bytes read and written.',
            measure_ceilings,
            10,
        ),
        Section(
            'correctness',
            'Relative errors of every backend against the reference in float64, of '
            'values and of the worst gradient.',
            check_ops,
            60,
        ),
        Section(
            'ops',
            'All backends in turns, medians of events. Memory is that of forward and '
            'backward beyond the inputs.',
            time_ops,
            90,
        ),
        Section(
            'models',
            'Classifiers at 224x224 in channels-last format under autocast to '
            'bfloat16, with the backends that were the fastest in ops. A training '
            'step is forward and backward.',
            time_models,
            80,
        ),
        Section(
            'latency',
            'One image, from the call until the result is there.',
            time_latency,
            25,
        ),
        Section(
            'launches',
            'Kernels of a pass at the batch size of the models. The rest of the time '
            'the device waits.',
            count_launches,
            30,
        ),
        Section(
            'kernels', 'The eight that take the most time, of these.', list_kernels, 5
        ),
        Section(
            'encoder',
            'An encoder layer of Deformable DETR, with all tokens of an image of '
            '800x1344 as queries and with 30 %, as in Focus-DETR.',
            time_encoder,
            20,
        ),
        Section(
            'depthwise',
            'Depthwise convolutions by memory format.',
            time_depthwise,
            20,
        ),
        Section(
            'compiled',
            'The models compiled by torch.compile, forward pass.',
            time_compiled,
            60,
        ),
    )
}


def run_job(args: argparse.Namespace) -> int:
    """Run the sections that the command line asks for.

    Args:
        args: Options of the command.

    Returns:
        The exit status, 1 if an op computed something wrong.

    Raises:
        UsageError: There is no GPU.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not args.smoke:
        raise UsageError('there is no GPU; --smoke tries the job on any device')
    files = Files(
        args.json or args.out / 'gpu.json',
        args.csv or args.out / 'gpu.csv',
        args.page or args.out / 'gpu.md',
    )
    sections = [
        x for x in SECTIONS.values() if args.only is None or x.name in args.only
    ]
    device = torch.device('cuda', 0) if on_gpu else torch.device('cpu')
    job = Job(device, args.smoke, args.budget, files, sections, args.resume)
    job.run()
    for path in (*files, job.tuning_path):
        print(path)
    return 1 if job.results.failed else 0
