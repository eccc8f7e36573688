"""Print what backbones spend the time of training iterations on, as JSON.

For a row of the comparison on CIFAR-10, with one thread:

  python docs/figures/operations.py configs/dat/dat-nano_1xb64-3e_cifar10.py
"""

import argparse
import json
from collections import Counter

import torch
from mmengine import Config
from mmpretrain.apis import get_model
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import profile

IMAGES = (64, 3, 64, 64)
WARM_UP, REPEATS = 3, 10
DENSE, DEPTHWISE, OTHERS = 'convolutions, products', 'depthwise', 'others'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='config files of classifiers')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({path: shares(path) for path in args.configs}, indent=2))


def shares(path: str) -> dict[str, str]:
    """Return the share of the time of every type of operations."""
    backbone = get_model(Config.fromfile(path)).backbone
    backbone.train()
    images = torch.randn(IMAGES)

    def run() -> None:
        sum(x.mean() for x in backbone(images)).backward()

    for _ in range(WARM_UP):
        run()
    with profile(record_shapes=True) as profiler:
        for _ in range(REPEATS):
            run()
    times = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        times[operation_type(event)] += event.self_cpu_time_total
    return {
        name: f'{times[name] / times.total():.0%}'
        for name in (DENSE, DEPTHWISE, OTHERS)
    }


def operation_type(event: FunctionEventAvg) -> str:
    """Return the type of an operation; 1x1 convolutions compute linear layers, too."""
    shapes = [shape for shape in event.input_shapes if len(shape) == 4]
    if 'convolution' in event.key and shapes:
        *_, weight = shapes  # follows the feature map
        return DEPTHWISE if weight[1] == 1 else DENSE
    return DENSE if 'mm' in event.key else OTHERS


if __name__ == '__main__':
    main()
