"""Measure attention: received by keys, distance, offset spread, routing entropy."""

import math
from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsparse.evaluation.kept_token_recall import boxes_with_tokens
from mmsparse.models.layers.attention_map import AttentionMap
from mmsparse.visualization.sample import Sample

CHUNK = 1024  # queries at a time


class ReceivedAttention(NamedTuple):
    """Attention that keys receive, averaged over all queries and a group of heads."""

    name: str  # of the heads within the layer; empty for all heads
    keys: Tensor  # centers (y, x) in cells of the feature map, (B, T, 2)
    share: Tensor  # sums to 1, (B, T)


@torch.no_grad()
def received_attention(layer: nn.Module, x: Tensor) -> list[ReceivedAttention]:
    """Average the attention of all queries, for every group of heads with shared keys.

    ``layer`` has ``attention_maps``; its input ``x`` is (B, C, H, W).
    """
    totals: list[Tensor] = []
    for _, maps in _chunked_maps(layer, x):
        totals = totals or [torch.zeros_like(group.keys[..., 0]) for group in maps]
        for total, group in zip(totals, maps, strict=True):
            weights = group.weights.mean(1).flatten(1)
            total.scatter_add_(1, group.index.flatten(1), weights)
    return [
        ReceivedAttention(group.name, group.keys, total / x[0, 0].numel())
        for group, total in zip(maps, totals, strict=True)
    ]


@torch.no_grad()
def attention_distance(layer: nn.Module, x: Tensor) -> Tensor:
    """Average the distance from query to key, weighted by attention.

    Args:
        layer: Layer with ``attention_maps``.
        x: Its input, (B, C, H, W).

    Returns:
        Mean distance of every head in cells of the feature map, (heads,).

    Source: An Image is Worth 16x16 Words, arXiv 2010.11929, appendix D.7.
    """
    total = 0
    for queries, maps in _chunked_maps(layer, x):
        rows, columns = queries // x.shape[-1], queries % x.shape[-1]
        centers = torch.stack([rows, columns], dim=-1)[:, None] + 0.5  # (n, 1, 2)
        distances = []
        for group in maps:
            lengths = (group.locations() - centers).norm(dim=-1)  # (B, n, M)
            weighted = group.weights * lengths[:, None]  # (B, heads, n, M)
            distances.append(weighted.sum((2, 3)).mean(0))
        total = total + torch.cat(distances)
    return total / x[0, 0].numel()


def _chunked_maps(
    layer: nn.Module, x: Tensor
) -> Iterator[tuple[Tensor, tuple[AttentionMap, ...]]]:
    for queries in torch.arange(x[0, 0].numel(), device=x.device).split(CHUNK):
        yield queries, layer.attention_maps(x, queries)


@torch.no_grad()
def reference_points(layer: nn.Module, x: Tensor) -> Tensor:
    """Return where DAT's attention would sample without offsets, (B, groups, keys, 2).

    Centers are (y, x) in cells of the feature map ``x``.
    """
    references = layer.reference_locations(x)
    last = references.new_tensor(x.shape[-2:]) - 1
    return (references.flatten(2, 3) + 1) / 2 * last + 0.5


@torch.no_grad()
def offset_spread(layer: nn.Module, x: Tensor) -> float:
    """Return the root mean square offset of DAT's keys, in steps of their grid."""
    maps = layer.attention_maps(x, torch.zeros(1, dtype=torch.long, device=x.device))
    keys = torch.stack([group.keys for group in maps], dim=1)
    steps = (keys - reference_points(layer, x)) / layer.stride
    return float(steps.square().sum(-1).mean().sqrt())


@torch.no_grad()
def routing_statistics(layer: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the normalized entropy of BiFormer's routes, and what is never routed to.

    The entropy is 0 if all regions route to the same one, and 1 if they route to all
    equally often. The second value is the fraction of the regions without a route.
    """
    routing = layer.regions(x)
    routes, num_regions = routing.routes.flatten(1), math.prod(routing.grid)
    counts = torch.zeros(len(routes), num_regions, device=x.device)
    counts.scatter_add_(1, routes, torch.ones_like(routes, dtype=counts.dtype))
    entropy = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1).mean()
    if num_regions > 1:
        entropy = entropy / math.log(num_regions)
    return float(entropy), float((counts == 0).float().mean())


def sample_statistics(sample: Sample, boxes: Tensor | None = None) -> dict[str, float]:
    """Compute the scalars that describe a sample's attention, averaged by stage.

    Args:
        sample: The sample.
        boxes: Ground truth (x1, y1, x2, y2) in pixels of the image, (M, 4).

    Returns:
        Name to value: ``offset_spread/stage_3`` with deformable attention,
        ``routing_entropy/stage_2`` and ``never_routed/stage_2`` with routed regions,
        ``kept_token_recall/layer_1`` with a Focus-DETR and boxes; empty without any.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for recorded in sample.recording.layers:
        stage = recorded.stage.replace(' ', '_')
        layer, x = recorded.layer, recorded.x
        if recorded.samples_keys:
            values[f'offset_spread/{stage}'].append(offset_spread(layer, x))
        if recorded.routes_regions:
            entropy, never_routed = routing_statistics(layer, x)
            values[f'routing_entropy/{stage}'].append(entropy)
            values[f'never_routed/{stage}'].append(never_routed)
    means = {name: fmean(of_layers) for name, of_layers in values.items()}
    tokens = sample.recording.tokens
    if tokens is not None and boxes is not None and len(boxes):
        ends = boxes.new_tensor(sample.transform.input_size[::-1]).repeat(2)
        boxes = sample.transform.boxes_to_input(boxes) / ends
        kept, centers = tokens.kept.kept[0].cpu(), tokens.kept.centers[0].cpu()
        hits = boxes_with_tokens(boxes, centers, kept).float().mean(1)
        for i, recall in enumerate(hits.tolist(), start=1):
            means[f'kept_token_recall/layer_{i}'] = recall
    return means
