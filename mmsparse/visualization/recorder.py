"""Record attention layers, kept tokens and decoder queries with forward hooks."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmsparse.evaluation import KeptTokens, record_kept_tokens
from mmsparse.models import layers

SUPPORTED = (
    f'attention layers with attention_maps() ({", ".join(layers.__all__)})',
    'a token selector and its encoder (FocusDETR)',
    'a decoder with multi-scale deformable attention (FocusDETR, DINO, DeformableDETR)',
)


class LayerRecording(NamedTuple):
    """An attention layer and its input."""

    name: str  # in the model
    layer: nn.Module
    x: Tensor  # (B, C, H, W)
    stride: int  # pixels of the model's input per cell of x

    @property
    def title(self) -> str:
        """Stage and block, counted from 1; the layer's name outside of stages."""
        found = re.search(r'stages\.(\d+)\.(\d+)\.', self.name)
        if found is None:
            return self.name
        return f'stage {int(found[1]) + 1}, block {int(found[2]) + 1}'

    @property
    def stage(self) -> str:
        """The title without the block."""
        return self.title.partition(', ')[0]

    @property
    def samples_keys(self) -> bool:
        """Whether keys are sampled at learned locations (DAT)."""
        return hasattr(self.layer, 'sampling_locations')

    @property
    def routes_regions(self) -> bool:
        """Whether regions are routed to regions (BiFormer)."""
        return hasattr(self.layer, 'regions')

    def query_at(self, point: Tensor) -> int:
        """Return the index of the query at a point (x, y) of the model's input."""
        height, width = self.x.shape[-2:]
        column, row = (point / self.stride).long().tolist()
        return min(row, height - 1) * width + min(column, width - 1)


class TokensRecording(NamedTuple):
    """The tokens of a Focus-DETR."""

    kept: KeptTokens
    scores: Tensor  # foreground logits, (B, N)
    objects: Tensor  # True for the object tokens of a layer, (B, layers, N)


class SamplingRecording(NamedTuple):
    """Sampling locations of a decoder layer, and attention weights that sum to 1.

    Points (x, y) are normalized to [0, 1] over the input without padding.
    """

    points: Tensor  # (B, Q, heads, levels, points, 2)
    weights: Tensor  # (B, Q, heads, levels, points)


class DetectionsRecording(NamedTuple):
    """The best class of all decoder queries, with its score and box.

    Boxes (x1, y1, x2, y2) are normalized to [0, 1] over the input without padding.
    """

    scores: Tensor  # (B, Q)
    labels: Tensor  # (B, Q)
    boxes: Tensor  # (B, Q, 4)


@dataclass
class Recording:
    """What was recorded of the last batch; parts that the model lacks are empty."""

    inputs: Tensor | None = None  # of the backbone, padding included, (B, C, H, W)
    layers: list[LayerRecording] = field(default_factory=list)  # in execution order
    tokens: TokensRecording | None = None
    sampling: list[SamplingRecording] = field(default_factory=list)  # by decoder layer
    detections: DetectionsRecording | None = None


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record a backbone or a model of mmdet, mmseg or mmpretrain while it runs.

    Forward hooks, which are removed at the end of the context, keep references to the
    inputs of layers; attention maps are computed from them later.

    Args:
        model: The model; it may be wrapped for distributed training.

    Yields:
        The recording of the last batch, empty at first.

    Raises:
        ValueError: The model has no layers that can be recorded.
    """
    if is_model_wrapper(model):
        model = model.module
    recording = Recording()

    def start(backbone: nn.Module, args: tuple) -> None:
        recording.__init__(inputs=args[0].detach())  # forgets the batch before

    handles = [getattr(model, 'backbone', model).register_forward_pre_hook(start)]
    try:
        handles += _record_layers(model, recording)
        handles += _record_tokens(model, recording)
        handles += _record_decoder(model, recording)
        if len(handles) == 1:
            raise ValueError(
                f'model must have layers to record; {type(model).__name__} has none '
                f'of: {"; ".join(SUPPORTED)}.'
            )
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _record_layers(model: nn.Module, recording: Recording) -> list[RemovableHandle]:
    def record_layer(name: str, layer: nn.Module, args: tuple) -> None:
        x = args[0].detach()
        # Strides are powers of two; the last cells may reach into the padding.
        ratio = max(recording.inputs.shape[-2:]) / max(x.shape[-2:])
        stride = 2 ** max(round(math.log2(ratio)), 0)
        recording.layers.append(LayerRecording(name, layer, x, stride))

    return [
        module.register_forward_pre_hook(partial(record_layer, name))
        for name, module in model.named_modules()
        if hasattr(module, 'attention_maps')
    ]


def _record_tokens(model: nn.Module, recording: Recording) -> list[RemovableHandle]:
    if not hasattr(model, 'token_selector'):
        return []
    latest: dict[str, Tensor] = {}

    def record_scores(selector: nn.Module, args: tuple, logits: Tensor) -> None:
        latest['scores'] = logits.detach()

    def record_rows(encoder: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        latest['rows'] = inputs['selection'].rows

    def record_kept(kept: KeptTokens) -> None:
        objects = torch.zeros_like(kept.kept)
        recording.tokens = TokensRecording(kept, latest['scores'], objects)

    def record_objects(
        i: int, layer: nn.Module, args: tuple, inputs: dict[str, Any]
    ) -> None:
        if layer.num_object_tokens:
            eligible = inputs['eligible']
            chosen = layer.choose_objects(args[2], eligible)  # by their scores
            tokens = latest['rows'].gather(1, chosen)
            marks = True if eligible is None else eligible.gather(1, chosen)
            recording.tokens.objects[:, i].scatter_(1, tokens, marks)

    return [
        model.token_selector.register_forward_hook(record_scores),
        model.encoder.register_forward_pre_hook(record_rows, with_kwargs=True),
        record_kept_tokens(model, record_kept),
        *(
            layer.register_forward_pre_hook(
                partial(record_objects, i), with_kwargs=True
            )
            for i, layer in enumerate(model.encoder.layers)
        ),
    ]


def _record_decoder(model: nn.Module, recording: Recording) -> list[RemovableHandle]:
    if not hasattr(model, 'decoder'):
        return []
    # Not at the top: mmcv may be installed without compiled operators.
    from mmcv.ops import MultiScaleDeformableAttention

    attentions = [
        module
        for module in model.decoder.modules()
        if isinstance(module, MultiScaleDeformableAttention)
    ]
    if not attentions:
        return []
    ratios: list[Tensor] = []

    def record_ratios(decoder: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        ratios[:] = [inputs['valid_ratios']]

    def record_sampling(layer: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        recording.sampling.append(_sampling(layer, ratios[0], **inputs))

    def record_detections(head: nn.Module, args: tuple, outputs: Any) -> None:
        logits, boxes = (x[-1].detach() for x in outputs[:2])  # of the last layer
        scores, labels = logits.sigmoid().max(-1)
        centers, sizes = boxes.chunk(2, dim=-1)
        corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
        recording.detections = DetectionsRecording(scores, labels, corners)

    return [
        model.decoder.register_forward_pre_hook(record_ratios, with_kwargs=True),
        *(
            layer.register_forward_pre_hook(record_sampling, with_kwargs=True)
            for layer in attentions
        ),
        model.bbox_head.register_forward_hook(record_detections),
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
    query = query if query_pos is None else query + query_pos
    grid = (layer.num_heads, layer.num_levels, layer.num_points)
    offsets = layer.sampling_offsets(query).unflatten(-1, (*grid, 2))
    weights = layer.attention_weights(query).unflatten(-1, (layer.num_heads, -1))
    references = reference_points[:, :, None, :, None]
    if references.shape[-1] == 2:
        offsets = offsets / spatial_shapes.flip(-1)[:, None]
    else:
        offsets = offsets * references[..., 2:] * (0.5 / layer.num_points)
    points = references[..., :2] + offsets
    return SamplingRecording(
        points / ratios[:, None, None, :, None],
        weights.softmax(-1).unflatten(-1, grid[1:]),
    )
