"""Numbers behind the pictures: what keys receive, and how far heads look."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import AttentionMap

CHUNK = 1024  # queries at a time


class Received(NamedTuple):
    """What the keys of some heads get from all queries together.

    Args:
        name: What tells these heads from the others of the layer.
        keys: Centers (y, x) of the keys in cells of the map, (B, T, 2).
        share: Of the attention of a mean query, (B, T); sums to 1.
    """

    name: str
    keys: Tensor
    share: Tensor


@torch.no_grad()
def attention_received(layer: nn.Module, x: Tensor) -> list[Received]:
    """Add up the attention of all queries, key by key.

    Args:
        layer: Has ``looks``.
        x: Map, (B, C, H, W).

    Returns:
        One entry for heads that share their keys.
    """
    num_queries = x.shape[-2] * x.shape[-1]
    totals: list[Tensor] = []
    for queries in torch.arange(num_queries, device=x.device).split(CHUNK):
        looks = layer.attention_maps(x, queries)
        totals = totals or [torch.zeros_like(look.keys[..., 0]) for look in looks]
        for total, look in zip(totals, looks, strict=True):
            weights = look.weights.mean(1)
            total.scatter_add_(1, look.index.flatten(1), weights.flatten(1))
    return [
        Received(look.name, look.keys, total / num_queries)
        for look, total in zip(looks, totals, strict=True)
    ]


@torch.no_grad()
def attention_distance(layer: nn.Module, x: Tensor) -> Tensor:
    """Measure how far every head looks.

    Args:
        layer: Has ``looks``.
        x: Map, (B, C, H, W).

    Returns:
        Mean distance from query to key, weighed by attention, in cells of the map,
        (heads,).
    """
    num_queries = x.shape[-2] * x.shape[-1]
    total = 0
    for queries in torch.arange(num_queries, device=x.device).split(CHUNK):
        y, column = queries // x.shape[-1], queries % x.shape[-1]
        centers = torch.stack([y, column], dim=-1)[:, None] + 0.5  # (n, 1, 2)
        distances = [
            _weigh(look, (look.locations() - centers).norm(dim=-1))
            for look in layer.attention_maps(x, queries)
        ]
        total = total + torch.cat(distances)
    return total / num_queries


def _weigh(look: AttentionMap, distances: Tensor) -> Tensor:
    """Distances, (B, n, M), summed over queries, (heads,)."""
    return (look.weights * distances[:, None]).sum((2, 3)).mean(0)


def reference_positions(layer: nn.Module, x: Tensor) -> Tensor:
    """Where deformable attention would sample without offsets.

    Args:
        layer: A :class:`mmsparse.models.DeformableAttention2d`.
        x: Map, (B, C, H, W).

    Returns:
        Centers (y, x) in cells of the map, (B, groups, Hk * Wk, 2).
    """
    references = layer.reference_locations(x)
    last = references.new_tensor(x.shape[-2:]) - 1
    return (references.flatten(2, 3) + 1) / 2 * last + 0.5


@torch.no_grad()
def offset_spread(layer: nn.Module, x: Tensor) -> float:
    """Measure how much keys of deformable attention leave their grid.

    Args:
        layer: A :class:`mmsparse.models.DeformableAttention2d`.
        x: Map, (B, C, H, W).

    Returns:
        Root of the mean square of their way, in steps of the grid of keys; 0 for none.
    """
    looks = layer.attention_maps(x, torch.zeros(1, dtype=torch.long, device=x.device))
    keys = torch.stack([look.keys for look in looks], dim=1)
    steps = (keys - reference_positions(layer, x)) / layer.stride
    return float(steps.square().sum(-1).mean().sqrt())


class RoutingUse(NamedTuple):
    """How the regions of a map share the attention of others.

    Args:
        entropy: Of the routes over the regions, over that of equal shares: 1 if all
            regions are routed to alike, 0 if all routes lead to one.
        never: Part of the regions that no region routes to.
    """

    entropy: float
    never: float


@torch.no_grad()
def routing_use(layer: nn.Module, x: Tensor) -> RoutingUse:
    """Measure which regions are routed to.

    Args:
        layer: A :class:`mmsparse.models.BiLevelRoutingAttention`.
        x: Map, (B, C, H, W).

    Returns:
        The mean over the pictures.
    """
    routing = layer.regions(x)
    routes, num_regions = routing.routes.flatten(1), math.prod(routing.grid)
    counts = torch.zeros(len(routes), num_regions, device=x.device)
    counts.scatter_add_(1, routes, torch.ones_like(routes, dtype=counts.dtype))
    shares = counts / counts.sum(1, keepdim=True)
    entropy = torch.special.entr(shares).sum(1)
    if num_regions > 1:
        entropy = entropy / counts.new_tensor(num_regions).log()
    return RoutingUse(float(entropy.mean()), float((counts == 0).float().mean()))


def receptive_field(
    backbone: nn.Module, inputs: Tensor, point: tuple[float, float], output: int = -1
) -> Tensor:
    """Measure which pixels a cell of a backbone's map depends on.

    Args:
        backbone: Returns maps, fine to coarse.
        inputs: Pictures, (B, 3, H, W).
        point: (x, y) in pixels; the cell that holds it is meant.
        output: Which map.

    Returns:
        Size of the gradient of the sum of the cell's channels, over colors and
        pictures, (H, W); the largest is 1.

    Source: Understanding the Effective Receptive Field, arXiv 1701.04128, section 3.
    """
    inputs = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        features = backbone(inputs)[output]
        cells = [
            min(int(place * count / length), count - 1)
            for place, count, length in zip(
                point, features.shape[:-3:-1], inputs.shape[:-3:-1], strict=True
            )
        ]
        chosen = features[..., cells[1], cells[0]].sum()
        (gradient,) = torch.autograd.grad(chosen, inputs)
    strength = gradient.abs().sum((0, 1))
    return strength / strength.max().clamp(min=torch.finfo(strength.dtype).tiny)
