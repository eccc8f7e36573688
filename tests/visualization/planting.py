import torch
from torch import nn


def plant_offset(layer, y, x):
    """Let every key move by so much of the map, whatever the queries are."""
    norm, last = layer.conv_offset[1], layer.conv_offset[3]
    nn.init.zeros_(norm.weight)
    nn.init.ones_(norm.bias)
    active = float(nn.functional.gelu(torch.tensor(1.0)))
    width = last.weight.shape[1]
    with torch.no_grad():
        last.weight[0] = y / (width * active)
        last.weight[1] = x / (width * active)
