"""Write one interactive HTML page: a slider over layers, a click moves the query."""

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
from mmsparse.visualization.attention import (
    MAX_GROUPS,
    key_rectangles,
    region_rectangles,
)
from mmsparse.visualization.detection import split_levels
from mmsparse.visualization.detr import map_corners
from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.panels import enlarge
from mmsparse.visualization.recorder import (
    CrossAttentionRecording,
    LayerRecording,
    SamplingRecording,
)
from mmsparse.visualization.sample import Sample

TEMPLATE = Path(__file__).with_name('page.html')
# Limits that keep a page at a few megabytes.
MAX_QUERIES = 24  # per row and per column of a feature map
MAX_KEYS = 128  # per query and group of heads
MAX_DETECTIONS = 20


def write_page(sample: Sample, point: Point, path: str | Path) -> None:
    """Write a self-contained HTML page that shows all recorded layers of a sample.

    The page has queries in at most 24 rows and columns of a feature map, the 128 keys
    with the largest weights of each, and the 20 best detections.

    Args:
        sample: The sample.
        point: (x, y) of the first query in pixels of the image.
        path: The HTML file.

    Raises:
        ValueError: The point is outside of the image or was cropped.
    """
    sample.transform.check_point(point)
    height, width = sample.transform.image_size
    data = dict(
        name=Path(path).stem,
        image=_encode_image(enlarge(sample.image)),
        width=width,
        height=height,
        caption=sample.caption or ', '.join(sample.labels),
        boxes=sample.boxes.tolist(),
        point=list(point),
        scale=sample.transform.scale,
        shift=sample.transform.shift,
        **_views(sample),
    )
    text = json.dumps(data).replace('</', '<\\/')
    page = TEMPLATE.read_text('utf-8').replace('__DATA__', text)
    Path(path).write_text(page, 'utf-8')


def _views(sample: Sample) -> dict[str, Any]:
    recording, views, extra = sample.recording, [], {}
    if recording.layers:
        layers = [_attention(sample, layer) for layer in recording.layers]
        views.append(dict(type='attention', name='attention of a query', layers=layers))
    if recording.tokens is not None:
        kept = recording.tokens.kept.kept[0]
        marks = kept.to(torch.uint8) + recording.tokens.objects[0].to(torch.uint8)
        layers = [
            dict(
                title=f'encoder layer {i + 1}: {mask.float().mean():.0%} kept',
                marks=_pack(marks[i], np.uint8),
            )
            for i, mask in enumerate(kept)
        ]
        views.append(dict(type='tokens', name='kept tokens', layers=layers))
        extra['levels'] = [
            dict(size=values.shape, box=corners.flatten().tolist())
            for values, corners in split_levels(sample, kept[0])
        ]
    if recording.detections is not None:
        scores, labels, boxes = sample.query_detections()
        best = scores.topk(min(MAX_DETECTIONS, len(scores))).indices
        for view, name, pack, recorded in (
            ('sampling', 'sampling locations', _sampling, recording.sampling),
            ('queries', 'attention', _queries, recording.cross_attention),
        ):
            layers = [
                dict(title=f'decoder layer {i}') | pack(sample, layer, best)
                for i, layer in enumerate(recorded, start=1)
            ]
            if layers:
                name = f'{name} of a detection'
                views.append(dict(type=view, name=name, layers=layers))
        extra['detections'] = [
            dict(
                box=boxes[i].tolist(),
                label=sample.describe(int(labels[i]), float(scores[i])),
            )
            for i in best.tolist()
        ]
    return dict(views=views, **extra)


@torch.no_grad()
def _attention(sample: Sample, layer: LayerRecording) -> dict[str, Any]:
    height, width = size = layer.x.shape[-2:]
    step = -(-max(size) // MAX_QUERIES)
    stored = [-(-length // step) for length in size]
    # A stored query is in the middle of step x step queries.
    rows, columns = (
        (torch.arange(count) * step + step // 2).clamp(max=length - 1)
        for count, length in zip(stored, size, strict=True)
    )
    queries = (rows[:, None] * width + columns).flatten().to(layer.x.device)
    chunks = (
        layer.layer.attention_maps(layer.x, x) for x in queries.split(MAX_QUERIES)
    )
    groups = list(zip(*chunks, strict=True))[:MAX_GROUPS]
    return dict(
        title=layer.title,
        stride=layer.stride,
        size=[height, width],
        step=step,
        stored=stored,
        dots=groups[0][0].extent == POINT,
        groups=[_group(sample, layer, maps) for maps in groups],
        regions=_regions(sample, layer) if layer.routes_regions else None,
    )


def _group(
    sample: Sample, layer: LayerRecording, maps: tuple[AttentionMap, ...]
) -> dict[str, Any]:
    weights = torch.cat([chunk.weights[0].mean(0) for chunk in maps])  # (n, M)
    rows = torch.cat([chunk.index[0] for chunk in maps])
    largest, order = weights.topk(min(weights.shape[1], MAX_KEYS))
    keys, extent = maps[0].keys[0], maps[0].extent
    index_type = np.uint16 if len(keys) < 2**16 else np.uint32
    return dict(
        name=maps[0].name,
        kept=order.shape[1],
        boxes=_pack_boxes(sample, key_rectangles(layer, keys, extent)),
        rows=_pack(rows.gather(1, order), index_type),
        weights=_pack_shares(largest, largest[:, :1]),
    )


@torch.no_grad()
def _regions(sample: Sample, layer: LayerRecording) -> dict[str, Any]:
    routing = layer.layer.regions(layer.x)
    return dict(
        size=routing.region,
        columns=routing.grid[1],
        topk=routing.routes.shape[-1],
        boxes=_pack_boxes(sample, region_rectangles(layer, routing)),
        routes=_pack(routing.routes[0], np.uint16),
    )


def _sampling(
    sample: Sample, layer: SamplingRecording, queries: Tensor
) -> dict[str, Any]:
    weights = layer.weights[0, queries]  # (Q, heads, levels, P)
    points = sample.to_pixels(layer.points[0, queries].cpu())
    levels = torch.arange(points.shape[2])[:, None].expand(points.shape[:-1])
    return dict(
        kept=math.prod(points.shape[1:4]),
        points=_pack(points, np.float32),
        weights=_pack_shares(weights, weights.amax((1, 2, 3), keepdim=True)),
        levels=_pack(levels, np.uint8),
    )


def _queries(
    sample: Sample, layer: CrossAttentionRecording, queries: Tensor
) -> dict[str, Any]:
    weights = layer.weights[0, :, queries].mean(0)  # (Q, H, W)
    size = tuple(weights.shape[-2:])
    return dict(
        size=size,
        box=map_corners(sample, size, layer.stride).flatten().tolist(),
        weights=_pack_shares(weights, weights.amax((1, 2), keepdim=True)),
    )


def _pack_boxes(sample: Sample, boxes: Tensor) -> dict[str, str]:
    return _pack(sample.transform.boxes_to_image(boxes.float()), np.float32)


def _pack_shares(weights: Tensor, largest: Tensor) -> dict[str, str]:
    return _pack((255 * weights / largest.clamp(min=1e-12)).round(), np.uint8)


def _pack(values: Tensor, dtype: type[np.generic]) -> dict[str, str]:
    array = values.detach().cpu().numpy().astype(dtype)
    return dict(
        type=f'{array.dtype.kind}{8 * array.dtype.itemsize}',
        data=base64.b64encode(array.tobytes()).decode(),
    )


def _encode_image(image: np.ndarray) -> str:
    stream = BytesIO()
    Image.fromarray(image).save(stream, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(stream.getvalue()).decode()
