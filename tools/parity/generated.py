"""Weights of cases that store the rule for their weights instead of the weights."""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Gains = Sequence[tuple[str, float]]
GAINS: Gains = (('qkv', 1.8), ('.q.', 1.8), ('.kv', 1.8), ('pos_embed', 0.3))


def generate_state(
    shapes: Mapping[str, torch.Size], salt: str, gains: Gains = GAINS
) -> dict[str, Tensor]:
    """Draw weights, each seeded by its official key.

    Args:
        shapes: Shape of every entry of the official state dict, by its official key.
        salt: Part of all seeds; differs between cases.
        gains: Scale of weights whose key contains a text; the first that fits counts.

    Returns:
        The official state dict.
    """
    return {
        key: _generate(key, tuple(shape), salt, gains) for key, shape in shapes.items()
    }


def _generate(key: str, shape: tuple[int, ...], salt: str, gains: Gains) -> Tensor:
    if key.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.int64)
    random = np.random.RandomState(zlib.crc32(f'{salt}/{key}'.encode()))
    if key.endswith('running_mean') or key.endswith('bias'):
        scale = 0.3 if key.endswith('running_mean') else 0.2
        values = scale * random.standard_normal(shape)
    elif key.endswith('running_var'):
        values = 0.4 + 1.2 * random.random_sample(shape)
    elif len(shape) == 1:
        values = 0.5 + random.random_sample(shape)
    else:
        gain = _gain(key, gains) / math.sqrt(math.prod(shape[1:]))
        values = gain * random.standard_normal(shape)
    return torch.from_numpy(np.asarray(values)).float()


def _gain(key: str, gains: Gains) -> float:
    return next((gain for part, gain in gains if part in key), 1.0)
