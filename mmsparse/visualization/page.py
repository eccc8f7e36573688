"""One HTML page of a scene: a slider over layers, a click for the query, no network."""

import base64
import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmsparse.models.layers.attention_map import POINT, AttentionMap
from mmsparse.visualization.attention import region_rectangles
from mmsparse.visualization.recorder import LayerRecording, SamplingRecording
from mmsparse.visualization.sample import Sample
from mmsparse.visualization.tokens import level_maps

TEMPLATE = Path(__file__).with_name('page.html')
# What a page keeps, so that it stays a few megabytes.
MOST_QUERIES = 24  # of a map, down and across
MOST_KEYS = 128  # of a query and its group of heads, the heaviest
MOST_GROUPS = 4
MOST_DETECTIONS = 20


def write_page(scene: Sample, point: tuple[float, float], path: str | Path) -> None:
    """Write all that was seen of a picture into a page that a browser opens by itself.

    Queries are stored for at most 24 rows and columns of a map, each with its 128
    heaviest keys, and the 20 surest detections.

    Args:
        scene: The picture and what was seen of it.
        point: (x, y) of the first query, in pixels of the picture.
        path: The file.

    Raises:
        ValueError: The point is not on the picture, or not seen by the model.
    """
    scene.frame.check_point(point)
    height, width = scene.frame.picture
    data = dict(
        picture=_as_url(scene.picture),
        width=width,
        height=height,
        caption=scene.caption,
        boxes=scene.boxes.tolist(),
        point=list(point),
        scale=scene.frame.scale,
        shift=scene.frame.shift,
        views=_views(scene),
        levels=_levels(scene),
        detections=_detections(scene),
    )
    text = json.dumps(data).replace('</', '<\\/')
    Path(path).write_text(
        TEMPLATE.read_text('utf-8').replace('__DATA__', text), 'utf-8'
    )


def _views(scene: Sample) -> list[dict[str, Any]]:
    seen, views = scene.seen, []
    if seen.layers:
        layers = [_attention(scene, layer) for layer in seen.layers]
        views.append(dict(kind='attention', name='attention of a query', layers=layers))
    if seen.tokens is not None:
        kept = seen.tokens.kept.kept[0]
        marks = kept.to(torch.uint8) + seen.tokens.objects[0].to(torch.uint8)
        layers = [
            dict(title=f'encoder layer {i}: {own.float().mean():.0%} kept')
            | dict(marks=_pack(mark, np.uint8))
            for i, (own, mark) in enumerate(zip(kept, marks, strict=True), start=1)
        ]
        views.append(dict(kind='tokens', name='kept tokens', layers=layers))
    if seen.sampling:
        queries = _surest(scene)
        layers = [
            dict(title=f'decoder layer {i}') | _sampled(scene, layer, queries)
            for i, layer in enumerate(seen.sampling, start=1)
        ]
        views.append(dict(kind='sampling', name='points of a detection', layers=layers))
    return views


@torch.no_grad()
def _attention(scene: Sample, seen: LayerRecording) -> dict[str, Any]:
    height, width = size = seen.x.shape[-2:]
    step = -(-max(size) // MOST_QUERIES)
    stored = [-(-length // step) for length in size]
    # The middle one of those that a stored query stands for.
    rows, columns = (
        (torch.arange(count) * step + step // 2).clamp(max=length - 1)
        for count, length in zip(stored, size, strict=True)
    )
    queries = (rows[:, None] * width + columns).flatten().to(seen.x.device)
    parts = [
        seen.layer.attention_maps(seen.x, some) for some in queries.split(MOST_QUERIES)
    ]
    groups = list(zip(*parts, strict=True))[:MOST_GROUPS]
    return dict(
        title=seen.title,
        stride=seen.stride,
        size=[height, width],
        step=step,
        stored=stored,
        dots=groups[0][0].extent == POINT,
        groups=[_group(scene, seen, looks) for looks in groups],
        regions=_regions(scene, seen) if hasattr(seen.layer, 'regions') else None,
    )


def _group(
    scene: Sample, seen: LayerRecording, looks: tuple[AttentionMap, ...]
) -> dict[str, Any]:
    weights = torch.cat([look.weights[0].mean(0) for look in looks])  # (n, M)
    rows = torch.cat([look.index[0] for look in looks])
    kept = min(weights.shape[1], MOST_KEYS)
    heaviest, order = weights.topk(kept)
    shares = 255 * heaviest / heaviest[:, :1].clamp(min=1e-12)
    centers, half = looks[0].keys[0], weights.new_tensor(looks[0].extent) / 2
    sides = torch.cat([(centers - half).flip(-1), (centers + half).flip(-1)], dim=-1)
    few = len(centers) < 2**16
    return dict(
        name=looks[0].name,
        kept=kept,
        boxes=_pack_boxes(scene, sides * seen.stride),
        rows=_pack(rows.gather(1, order), np.uint16 if few else np.uint32),
        weights=_pack(shares.round(), np.uint8),
    )


def _regions(scene: Sample, seen: LayerRecording) -> dict[str, Any]:
    routing = seen.layer.regions(seen.x)
    return dict(
        size=routing.region,
        columns=routing.grid[1],
        topk=routing.routes.shape[-1],
        boxes=_pack_boxes(scene, region_rectangles(seen, routing)),
        routes=_pack(routing.routes[0], np.uint16),
    )


def _levels(scene: Sample) -> list[dict[str, Any]]:
    if scene.seen.tokens is None:
        return []
    levels = level_maps(scene, scene.seen.tokens.scores[0])
    corners = [[[0.0, 0.0], end] for _, end in levels]
    boxes = scene.frame.to_picture(torch.tensor(corners)).flatten(1).tolist()
    return [
        dict(size=list(values.shape), box=box)
        for (values, _), box in zip(levels, boxes, strict=True)
    ]


def _surest(scene: Sample) -> Tensor:
    scores = scene.detections()[0]
    return scores.topk(min(MOST_DETECTIONS, len(scores))).indices


def _detections(scene: Sample) -> list[dict[str, Any]]:
    if scene.seen.detections is None:
        return []
    scores, labels, boxes = scene.detections()
    return [
        dict(box=boxes[i].tolist(), label=f'class {int(labels[i])}, {scores[i]:.2f}')
        for i in _surest(scene).tolist()
    ]


def _sampled(scene: Sample, seen: SamplingRecording, queries: Tensor) -> dict[str, Any]:
    points = scene.to_pixels(seen.points[0, queries].cpu())  # (Q, heads, levels, P, 2)
    weights = seen.weights[0, queries]
    shares = 255 * weights / weights.amax((1, 2, 3), keepdim=True)
    levels = torch.arange(points.shape[2])[:, None].expand(points.shape[:-1])
    return dict(
        kept=math.prod(points.shape[1:4]),
        points=_pack(points, np.float32),
        weights=_pack(shares.round(), np.uint8),
        levels=_pack(levels, np.uint8),
    )


def _pack_boxes(scene: Sample, boxes: Tensor) -> dict[str, str]:
    """Boxes of the input, (M, 4), in pixels of the picture."""
    return _pack(scene.frame.boxes_to_picture(boxes.float()), np.float32)


def _pack(values: Tensor, kind: type[np.generic]) -> dict[str, str]:
    array = values.detach().cpu().numpy().astype(kind)
    return dict(
        type=f'{array.dtype.kind}{8 * array.dtype.itemsize}',
        data=base64.b64encode(array.tobytes()).decode(),
    )


def _as_url(picture: np.ndarray) -> str:
    stream = BytesIO()
    Image.fromarray(picture).save(stream, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(stream.getvalue()).decode()
