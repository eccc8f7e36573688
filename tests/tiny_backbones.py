"""Backbones of two small stages that have every attention layer of their family."""

import torch

from mmsparse.models import DAT, BiFormer, ShuntedTransformer

SMALL = dict(embed_dims=(16, 32), num_heads=2)
V2022 = dict(SMALL, depths=2, formulation='v2022', window_sizes=4)
V2023 = dict(
    SMALL, depths=2, formulation='v2023', downsampling='overlapping', strides=(4, 2)
)
ARCHS = {
    'dat-2022': (DAT, dict(V2022, block_types=('LS', 'LD'))),
    'dat-2023': (DAT, dict(V2023, block_types=('ND', 'ND'), mlp_kernels=3)),
    'biformer': (
        BiFormer,
        dict(SMALL, depths=1, block_types=('routing', 'full'), topks=(4, None)),
    ),
    'shunted': (ShuntedTransformer, dict(SMALL, depths=1, sr_ratios=(2, 1))),
}
BIASES = ('fixed', 'log_cpb', 'depthwise', 'none')
OTHERS = {
    'dat-multi-scale': (DAT, dict(V2023, block_types='M')),
    **{
        f'dat-{bias}': (DAT, dict(V2023, block_types='D', position_biases=bias))
        for bias in BIASES
    },
}


def build(name, **arguments):
    """Build a backbone of ARCHS or OTHERS, always with the same weights."""
    backbone, arch = (ARCHS | OTHERS)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return backbone(arch, out_indices=(0, 1), **arguments)
