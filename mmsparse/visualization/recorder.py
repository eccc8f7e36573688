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
from mmsparse.visualization.host_attention import (
    SUPPORTED_HOSTS,
    HostAttention,
    called_weights,
    find_adapter,
    name_arguments,
)

SUPPORTED = (
    f'attention layers with attention_maps() ({", ".join(layers.__all__)})',
    SUPPORTED_HOSTS,
    'a token selector and its encoder (FocusDETR, SparseDETR)',
    'a decoder with multi-scale deformable attention (FocusDETR, DINO, '
    'DeformableDETR) or full attention (DETR)',
)
TITLES = (  # patterns of names of layers, and titles with numbers from 1
    (r'encoder\.layers\.(\d+)\.', 'encoder, layer {}'),
    (r'(?:stages|layers)\.(\d+)\.(?:blocks\.|1\.)?(\d+)(?:\.|$)', 'stage {}, block {}'),
    (r'(?:layers|blocks)\.(\d+)(?:\.|$)', 'block {}'),
)


class LayerRecording(NamedTuple):
    """An attention layer, or the adapter of one, and its input."""

    title: str  # stage and block, counted from 1; the name of a layer without
    layer: nn.Module | HostAttention
    x: Tensor  # (B, C, H, W)
    stride: int  # pixels of the model's input per cell of x

    @property
    def stage(self) -> str:
        """The title without the block; ``block`` in a model without stages."""
        stage = self.title.partition(', ')[0]
        return 'block' if re.fullmatch(r'block \d+', stage) else stage

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
    """The tokens of a Focus-DETR, or of a Sparse DETR: one entry for all layers."""

    kept: KeptTokens
    scores: Tensor  # foreground logits, (B, N)
    objects: Tensor  # True for the object tokens of a layer, (B, layers, N)


class SamplingRecording(NamedTuple):
    """Sampling locations of a decoder layer, and attention weights that sum to 1.

    Points (x, y) are normalized to [0, 1] over the input without padding.
    """

    points: Tensor  # (B, Q, heads, levels, points, 2)
    weights: Tensor  # (B, Q, heads, levels, points)


class CrossAttentionRecording(NamedTuple):
    """Attention of the queries of a decoder layer to a feature map (DETR)."""

    weights: Tensor  # sums to 1, (B, heads, Q, H, W)
    stride: int  # pixels of the model's input per cell


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
    output_sizes: list[tuple[int, int]] = field(default_factory=list)  # of its maps
    layers: list[LayerRecording] = field(default_factory=list)  # in execution order
    tokens: TokensRecording | None = None
    sampling: list[SamplingRecording] = field(default_factory=list)  # by decoder layer
    cross_attention: list[CrossAttentionRecording] = field(default_factory=list)  # too
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

    def finish(backbone: nn.Module, args: tuple, outputs: Any) -> None:
        maps = outputs if isinstance(outputs, (list, tuple)) else ()
        sizes = (tuple(x.shape[-2:]) for x in maps if getattr(x, 'ndim', 0) == 4)
        recording.output_sizes = list(sizes)

    backbone = getattr(model, 'backbone', None)
    backbone = model if backbone is None else backbone
    handles = [
        backbone.register_forward_pre_hook(start),
        backbone.register_forward_hook(finish),
    ]
    base = len(handles)
    try:
        handles += _record_layers(model, recording)
        handles += _record_tokens(model, recording)
        handles += _record_decoder(model, recording)
        if len(handles) == base:
            raise ValueError(
                f'model must have layers to record; {type(model).__name__} has none '
                f'of: {"; ".join(SUPPORTED)}.'
            )
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _record_layers(model: nn.Module, recording: Recording) -> list[RemovableHandle]:
    grid: list[int] = []  # height and width of the last convolution's output

    def record_layer(name: str, layer: nn.Module, args: tuple) -> None:
        append(name, layer, args[0].detach())

    def record_host(
        name: str, adapter: type[HostAttention], layer: nn.Module, *call: Any
    ) -> None:
        with torch.no_grad():
            adapted = adapter(layer, name_arguments(layer, *call), grid)
        append(name, adapted, adapted.x)

    def append(name: str, layer: nn.Module | HostAttention, x: Tensor) -> None:
        stride = _stride(recording.inputs.shape[-2:], x.shape[-2:])
        recording.layers.append(LayerRecording(_title(model, name), layer, x, stride))

    def record_grid(conv: nn.Module, args: tuple, output: Tensor) -> None:
        grid[:] = output.shape[-2:]

    handles, adapted = [], False
    for name, module in model.named_modules():
        if hasattr(module, 'attention_maps'):
            hook = partial(record_layer, name)
            handles.append(module.register_forward_pre_hook(hook))
        elif _attends_to_map(model, name) and (adapter := find_adapter(module)):
            hook, adapted = partial(record_host, name, adapter), True
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    if adapted:
        convs = (x for x in model.modules() if isinstance(x, nn.Conv2d))
        handles += [conv.register_forward_hook(record_grid) for conv in convs]
    return handles


def _title(model: nn.Module, name: str) -> str:
    for pattern, title in TITLES:
        if found := re.search(pattern, name):
            numbers = [int(number) + 1 for number in found.groups()]
            blocks = model.get_submodule(name[: found.start(found.lastindex) - 1])
            if type(blocks[0]).__name__ == 'AbsolutePositionEmbedding':  # mmdet's PVT
                numbers[-1] -= 1
            return title.format(*numbers)
    return name


def _attends_to_map(model: nn.Module, name: str) -> bool:
    """Return whether tokens of a layer are a feature map: in backbones and in DETR."""
    if getattr(model, 'backbone', None) is None or name.startswith('backbone.'):
        return True
    return re.fullmatch(r'encoder\.layers\.\d+\.self_attn', name) is not None


def _stride(inputs: torch.Size, size: torch.Size) -> int:
    """Return the pixels of the input per cell of a feature map."""
    ratio = max(inputs) / max(size)
    # Of stages a power of two; the last cells may reach into the padding.
    stride = 2 ** max(round(math.log2(ratio)), 0)
    fits = (abs(n / stride - cells) < 1 for n, cells in zip(inputs, size, strict=True))
    return stride if all(fits) else round(ratio)


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
    handles = _record_sampling(model, recording)
    handles = handles or _record_cross_attention(model, recording)
    if not handles:
        return []

    def record_detections(head: nn.Module, args: tuple, outputs: Any) -> None:
        logits, boxes = (x[-1].detach() for x in outputs[:2])  # of the last layer
        if head.loss_cls.use_sigmoid:
            probabilities = logits.sigmoid()
        else:
            probabilities = logits.softmax(-1)[..., :-1]  # the last is no object
        scores, labels = probabilities.max(-1)
        centers, sizes = boxes.chunk(2, dim=-1)
        corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
        recording.detections = DetectionsRecording(scores, labels, corners)

    return [*handles, model.bbox_head.register_forward_hook(record_detections)]


def _record_cross_attention(
    model: nn.Module, recording: Recording
) -> list[RemovableHandle]:
    # Not at the top: mmcv need not be installed.
    from mmcv.cnn.bricks.transformer import MultiheadAttention

    grid: list[int] = []

    def record_grid(neck: nn.Module, args: tuple, outputs: tuple[Tensor]) -> None:
        grid[:] = outputs[-1].shape[-2:]

    def record_layer(layer: nn.Module, *call: Any) -> None:
        with torch.no_grad():
            weights = called_weights(layer, name_arguments(layer, *call))
        stride = _stride(recording.inputs.shape[-2:], grid)
        weights = weights.unflatten(-1, grid)
        recording.cross_attention.append(CrossAttentionRecording(weights, stride))

    layers = [getattr(layer, 'cross_attn', None) for layer in model.decoder.layers]
    layers = [layer for layer in layers if isinstance(layer, MultiheadAttention)]
    if not layers or not hasattr(model, 'neck'):
        return []
    return [
        model.neck.register_forward_hook(record_grid),
        *(
            layer.register_forward_pre_hook(record_layer, with_kwargs=True)
            for layer in layers
        ),
    ]


def _record_sampling(model: nn.Module, recording: Recording) -> list[RemovableHandle]:
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

    return [
        model.decoder.register_forward_pre_hook(record_ratios, with_kwargs=True),
        *(
            layer.register_forward_pre_hook(record_sampling, with_kwargs=True)
            for layer in attentions
        ),
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
