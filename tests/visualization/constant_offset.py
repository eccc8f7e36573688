import torch
from torch import nn


def set_constant_offset(layer, y, x):
    """Make every key move by a constant offset, whatever the queries are."""
    norm, last = layer.conv_offset[1], layer.conv_offset[3]
    nn.init.zeros_(norm.weight)
    nn.init.ones_(norm.bias)
    active = float(nn.functional.gelu(torch.tensor(1.0)))
    channels = last.weight.shape[1]
    with torch.no_grad():
        last.weight[0] = y / (channels * active)
        last.weight[1] = x / (channels * active)
