"""Watching what the parts of a model see and decide, without touching the model."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmsparse.evaluation import KeptTokens, record_kept_tokens

LOOKED_FOR = (
    'attention layers that tell where they look (BiLevelRoutingAttention, '
    'FullAttention2d, DeformableAttention2d, MultiScaleDeformableAttention2d, '
    'ShuntedSelfAttention, NeighborhoodAttention2d, WindowAttention2d)',
    'a token selector and its encoder (FocusDETR)',
    'a decoder with multi-scale deformable attention (FocusDETR, DINO, DeformableDETR)',
)


class LayerRecording(NamedTuple):
    """An attention layer that was run.

    Args:
        name: Its name in the model.
        layer: The layer; has ``looks``.
        x: The map that it was given, (B, C, H, W).
        stride: Pixels of the input from one cell of the map to the next.
    """

    name: str
    layer: nn.Module
    x: Tensor
    stride: int

    @property
    def stage(self) -> str:
        """The stage of the backbone that it stands in, from 1; else all of its name."""
        found = re.search(r'stages\.(\d+)\.\d+\.', self.name)
        return f'stage {int(found[1]) + 1}' if found else self.name

    @property
    def title(self) -> str:
        """Its name for readers."""
        found = re.search(r'stages\.\d+\.(\d+)\.', self.name)
        return f'{self.stage}, block {int(found[1]) + 1}' if found else self.name

    def query_at(self, point: Tensor) -> int:
        """Find the position of the map at a point (x, y) of the input."""
        height, width = self.x.shape[-2:]
        column, row = (point / self.stride).long().tolist()
        return min(row, height - 1) * width + min(column, width - 1)


class TokensRecording(NamedTuple):
    """The tokens of a Focus-DETR.

    Args:
        kept: Where all tokens are, and what each layer of the encoder keeps.
        scores: Their foreground logits, (B, N).
        objects: True for tokens that the layer lets attend to each other, (B, layers,
            N).
    """

    kept: KeptTokens
    scores: Tensor
    objects: Tensor


class SamplingRecording(NamedTuple):
    """What the queries of a decoder layer sampled.

    Args:
        points: (x, y) from 0 to 1 over the picture, without padding, (B, Q, heads,
            levels, points, 2).
        weights: Of the points, summing to 1 over levels and points, (B, Q, heads,
            levels, points).
    """

    points: Tensor
    weights: Tensor


class DetectionsRecording(NamedTuple):
    """What the queries of a decoder became.

    Args:
        scores: Of the best class, (B, Q).
        labels: The best class, (B, Q).
        boxes: (x1, y1, x2, y2) from 0 to 1 over the picture, (B, Q, 4).
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor


@dataclass
class Recording:
    """What was seen of the last batch.

    Args:
        inputs: What the backbone was given, (B, 3, H, W), padding included.
        layers: The attention layers, in the order of their runs.
        tokens: The tokens of a Focus-DETR.
        sampling: The layers of a decoder with deformable attention.
        detections: What such a decoder found.
    """

    inputs: Tensor | None = None
    layers: list[LayerRecording] = field(default_factory=list)
    tokens: TokensRecording | None = None
    sampling: list[SamplingRecording] = field(default_factory=list)
    detections: DetectionsRecording | None = None


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Watch a model of any host, or a backbone, by forward hooks.

    Only references to what flows through the model are kept; what they mean is computed
    when somebody looks. The hooks are gone at the end.

    Args:
        model: The model.

    Yields:
        What was seen of the last batch; empty until one is run.

    Raises:
        ValueError: The model has none of the parts that there is something to see of;
            names them.
    """
    if is_model_wrapper(model):
        model = model.module
    seen, handles = Recording(), []
    try:
        handles += _watch_layers(model, seen)
        handles += _watch_tokens(model, seen)
        handles += _watch_decoder(model, seen)
        if not handles:
            raise ValueError(
                f'model must have a part to look at; {type(model).__name__} has none '
                f'of: {"; ".join(LOOKED_FOR)}.'
            )
        handles += _watch_backbone(model, seen)
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _watch_backbone(model: nn.Module, seen: Recording) -> list[RemovableHandle]:
    backbone = getattr(model, 'backbone', model)

    def begin(backbone: nn.Module, args: tuple) -> None:
        seen.__init__(inputs=args[0].detach())

    return [backbone.register_forward_pre_hook(begin)]


def _watch_layers(model: nn.Module, seen: Recording) -> list[RemovableHandle]:
    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple) -> None:
            x = args[0].detach()
            stride = _stride(seen.inputs.shape[-2:], x.shape[-2:])
            seen.layers.append(LayerRecording(name, layer, x, stride))

        return hook

    return [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if hasattr(module, 'attention_maps')
    ]


def _stride(canvas: tuple[int, int], size: tuple[int, int]) -> int:
    """The power of two that the map is smaller by; its last cells may overhang."""
    ratio = max(canvas) / max(size)
    return 2 ** max(round(math.log2(ratio)), 0)


def _watch_tokens(model: nn.Module, seen: Recording) -> list[RemovableHandle]:
    if not hasattr(model, 'token_selector'):
        return []
    latest: dict[str, Tensor] = {}

    def score(selector: nn.Module, args: tuple, logits: Tensor) -> None:
        latest['scores'] = logits.detach()

    def select(encoder: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        latest['rows'] = inputs['selection'].rows

    def keep(kept: KeptTokens) -> None:
        none = torch.zeros_like(kept.kept)
        seen.tokens = TokensRecording(kept, latest['scores'], none)

    def choose(i: int) -> Any:
        def hook(layer: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
            _, _, scores = args
            if layer.num_object_tokens:
                chosen = layer.choose_objects(scores, inputs['eligible'])
                tokens = latest['rows'].gather(1, chosen)
                marks = torch.ones_like(tokens, dtype=torch.bool)
                if inputs['eligible'] is not None:
                    marks = inputs['eligible'].gather(1, chosen)
                seen.tokens.objects[:, i].scatter_(1, tokens, marks)

        return hook

    return [
        model.token_selector.register_forward_hook(score),
        model.encoder.register_forward_pre_hook(select, with_kwargs=True),
        record_kept_tokens(model, keep),
        *(
            layer.register_forward_pre_hook(choose(i), with_kwargs=True)
            for i, layer in enumerate(model.encoder.layers)
        ),
    ]


def _watch_decoder(model: nn.Module, seen: Recording) -> list[RemovableHandle]:
    decoder = getattr(model, 'decoder', None)
    if decoder is None:
        return []
    # Here, not above: mmcv may come without compiled operators.
    from mmcv.ops import MultiScaleDeformableAttention

    attentions = [
        module
        for module in decoder.modules()
        if isinstance(module, MultiScaleDeformableAttention)
    ]
    if not attentions:
        return []
    ratios: list[Tensor] = []

    def begin(decoder: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        ratios[:] = [inputs['valid_ratios']]

    def sample(layer: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        seen.sampling.append(_sampling(layer, ratios[0], **inputs))

    def detect(head: nn.Module, args: tuple, outputs: Any) -> None:
        logits, boxes = (x[-1].detach() for x in outputs[:2])  # of the last layer
        scores, labels = logits.sigmoid().max(-1)
        centers, halves = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([centers - halves, centers + halves], dim=-1)
        seen.detections = DetectionsRecording(scores, labels, corners)

    return [
        decoder.register_forward_pre_hook(begin, with_kwargs=True),
        *(
            layer.register_forward_pre_hook(sample, with_kwargs=True)
            for layer in attentions
        ),
        model.bbox_head.register_forward_hook(detect),
    ]


@torch.no_grad()
def _sampling(
    layer: nn.Module,
    ratios: Tensor,
    query: Tensor,
    reference_points: Tensor,
    spatial_shapes: Tensor,
    query_pos: Tensor | None = None,
    **unused: Any,
) -> SamplingRecording:
    """Source: Deformable DETR, arXiv 2010.04159, equation 3."""
    placed = query if query_pos is None else query + query_pos
    grid = (layer.num_heads, layer.num_levels, layer.num_points)
    offsets = layer.sampling_offsets(placed).unflatten(-1, (*grid, 2))
    weights = layer.attention_weights(placed).unflatten(-1, (layer.num_heads, -1))
    references = reference_points[:, :, None, :, None]
    if references.shape[-1] == 2:
        steps = offsets / spatial_shapes.flip(-1)[:, None]
    else:
        steps = offsets * references[..., 2:] * (0.5 / layer.num_points)
    points = references[..., :2] + steps
    return SamplingRecording(
        points / ratios[:, None, None, :, None],
        weights.softmax(-1).unflatten(-1, grid[1:]),
    )
