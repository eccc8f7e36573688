"""Export models of mmdet, mmseg and mmpretrain with torch.export and to ONNX.

The exported graph takes raw images and returns predictions. Its batch size is dynamic,
its image size fixed, or dynamic where the model allows that. Needs torch 2.9 or later;
ONNX files need onnx and onnxscript, and a runtime to compare them with PyTorch.
"""

import logging
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.utils import digit_version
from torch import Tensor, nn

from mmsparse._logging import log_level
from mmsparse.deploy.runtimes import import_or_explain, load_session
from mmsparse.errors import UsageError
from mmsparse.models.backbones.base import image_channels
from mmsparse.models.backbones.dat import DAT
from mmsparse.models.backbones.shunted_transformer import ShuntedTransformer
from mmsparse.ops.sampling import PLUGIN_OPERATOR, use_sampler
from mmsparse.ops.tokens import gather_tokens

OLDEST_TORCH = '2.9'
TOLERANCE = 1e-4
AXES = dict(batch=0, height=2, width=3)  # of the images; those that may be dynamic
LONGEST_SIDE = 2**16  # of images
OPSET = 18  # of the exporter; it converts graphs to others
OPSETS = '18 to 25 work with torch 2.12 and onnxscript 0.7.2'
SAMPLER_KEY, NOTES_KEY = 'mmsparse.sampler', 'mmsparse.notes'  # in the metadata
# What is known of runtimes that compute GridSample wrongly, by the oldest opset.
GRID_SAMPLE_NOTES = {
    16: 'TensorRT 10.14 to 11.1 is reported to compute GridSample wrongly, without a '
    'message (NVIDIA/TensorRT issue 4813); for TensorRT, export with sampler gather or '
    'plugin',
    20: 'TensorRT up to 11.1 and TensorRT-RTX 1.5 are reported to read the mode '
    '"linear" of GridSample, new in opset 20, as "nearest", without a message '
    '(NVIDIA/TensorRT issue 4646); for TensorRT, export with opset 18 or 19',
}


class Graph(nn.Module):
    """A model from raw images to predictions, as it is exported.

    The input is ``image``: RGB from 0 to 255, float32, (B, 3, H, W), resized to the
    ``size`` of the graph (height and width) and not padded; UsageError is raised if the
    model's data preprocessor would pad it. Color order, mean and standard deviation of
    the data preprocessor are part of the graph. Backbones with other ``in_channels``
    take them in the order of the data.
    """

    outputs: tuple[str, ...] = ('logits',)
    one_size: str | None = None  # why height and width cannot be dynamic, if so

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model.eval()
        self.size = size
        preprocessor = model.data_preprocessor
        _check_padding(preprocessor, size)
        self.channels = image_channels(model)
        # mmcv loads BGR; a model without conversion was trained on BGR.
        self.flip = self.channels == 3 and not any(
            getattr(preprocessor, name, False) for name in CONVERSIONS
        )
        mean, std = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        if getattr(preprocessor, '_enable_normalize', False):
            mean, std = preprocessor.mean, preprocessor.std
        self.register_buffer('mean', mean.clone())
        self.register_buffer('std', std.clone())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor for each of ``outputs`` from images, (B, C, H, W)."""
        x = image.flip(1) if self.flip else image
        return self.run((x - self.mean) / self.std)

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor for each of ``outputs`` from normalized images."""
        raise NotImplementedError

    def differences(
        self, expected: Sequence[Tensor], found: Sequence[Tensor]
    ) -> dict[str, float]:
        """Return the maximum absolute difference of each of ``outputs``.

        They are relative to the largest expected value if that is above 1; infinite for
        NaN.
        """
        return {
            name: _difference(*pair)
            for name, *pair in zip(self.outputs, expected, found, strict=True)
        }


# Names of one flag in the data preprocessors of mmpretrain, mmseg and mmdet.
CONVERSIONS = ('to_rgb', 'channel_conversion', '_channel_conversion')


class ClassifierGraph(Graph):
    """A classifier of mmpretrain; returns logits, (B, classes)."""

    @property
    def one_size(self) -> str | None:
        """Why height and width cannot be dynamic; None with the backbones tried."""
        if isinstance(self.model.backbone, DAT | ShuntedTransformer):
            return None
        return 'of classifiers, those with DAT and ShuntedTransformer export so'

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of normalized images, (B, C, H, W)."""
        return (self.model.head(self.model.extract_feat(x)),)


class SegmentorGraph(Graph):
    """A segmentor of mmseg; returns logits of the whole image, (B, classes, H, W)."""

    one_size = 'mmseg records sizes of feature maps as constants'

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of normalized images, (B, C, H, W)."""
        return (self.model.encode_decode(x, [dict(img_shape=self.size)]),)


class DetectorGraph(Graph):
    """A detection transformer of mmdet; returns its best detections, best first.

    ``boxes`` (x1, y1, x2, y2) in pixels of the input, (B, K, 4), ``scores`` (B, K) from
    0 to 1 and ``labels`` (B, K), from 0; K is the head's ``max_per_img``. Detectors
    other than Deformable DETR, DINO, Sparse DETR and Focus-DETR raise UsageError.
    """

    outputs = ('boxes', 'scores', 'labels')
    one_size = 'the sizes of its feature maps are constants'

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        from mmsparse.deploy import fixed_size  # needs mmdet

        try:
            model = fixed_size.with_fixed_sizes(model)
        except ValueError as error:
            raise UsageError(str(error)) from error
        super().__init__(model, size)

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores and labels of normalized images, (B, C, H, W)."""
        states = self.model.forward_transformer(self.model.extract_feat(x))
        logits, boxes = (layers[-1] for layers in self.model.bbox_head(**states))
        scores, labels, queries = self._best(logits)
        centers, sizes = gather_tokens(boxes, queries).chunk(2, dim=-1)
        corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)
        ends = x.new_tensor(self.size[::-1]).repeat(2)
        return corners.clamp(0, 1) * ends, scores, labels

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, labels and queries of the best K from (B, Q, classes)."""
        head = self.model.bbox_head
        num_queries, classes = logits.shape[1:]
        count = head.test_cfg.get('max_per_img', num_queries)
        if head.loss_cls.use_sigmoid:  # a query may be of several classes
            scores = logits.sigmoid().flatten(1)
            scores, index = scores.topk(min(count, num_queries * classes))
            return scores, index % classes, index // classes
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, queries = scores.topk(min(count, num_queries))
        return scores, labels.gather(1, queries), queries

    def differences(
        self, expected: Sequence[Tensor], found: Sequence[Tensor]
    ) -> dict[str, float]:
        """Compare sorted scores, and every box with the nearest of its score and label.

        The order of detections with equal scores is arbitrary; those with the lowest
        score may differ, since others of that score were cut off. The difference of
        boxes is divided by the image's longer side.
        """
        boxes, scores, labels = expected
        distances = (boxes[:, :, None] - found[0][:, None]).abs()
        distances = distances.amax(-1) / max(self.size)  # (B, K, K)
        same = (scores[:, :, None] - found[1][:, None]).abs() <= TOLERANCE
        same &= labels[:, :, None] == found[2][:, None]
        nearest = distances.where(same, torch.inf).amin(-1)
        above_last = scores > scores[:, -1:] + TOLERANCE
        return dict(
            boxes=float(nearest.where(above_last, 0).max()),
            scores=_difference(scores, found[1]),
        )


def build_graph(model: BaseModel, size: tuple[int, int]) -> Graph:
    """Wrap a model and its weights for export, for images of a height and width.

    The model is a classifier of mmpretrain, an encoder-decoder of mmseg, or Deformable
    DETR, DINO, Sparse DETR or Focus-DETR. Others raise UsageError, and so does a model
    that would pad images of this size.
    """
    package = type(model).__module__.partition('.')[0]
    if hasattr(model, 'encode_decode'):
        return SegmentorGraph(model, size)
    if hasattr(model, 'bbox_head') or package == 'mmdet':
        return DetectorGraph(model, size)
    if hasattr(model, 'extract_feat') and getattr(model, 'head', None) is not None:
        return ClassifierGraph(model, size)
    raise UsageError(
        'model must be a classifier, an encoder-decoder for segmentation or a '
        f'detection transformer; got {type(model).__name__}.'
    )


def export_program(
    graph: Graph,
    sampler: str = 'grid_sample',
    dynamic: Collection[str] = ('batch',),
) -> torch.export.ExportedProgram:
    """Trace a graph with ``torch.export``.

    ``sampler`` is how it samples feature maps, see :mod:`mmsparse.ops.sampling`, and
    ``dynamic`` has the axes of any length, of ``AXES``. UsageError is raised if
    torch is older than 2.9, if the model does not allow a dynamic size, or if the
    sampler is ``plugin`` and the model has no multi-scale deformable attention.
    """
    if digit_version(torch.__version__) < digit_version(OLDEST_TORCH):
        raise UsageError(
            f'export needs torch {OLDEST_TORCH} or later; this is {torch.__version__}'
        )
    image = _noise(graph, 2 if 'batch' in dynamic else 1, graph.size)
    axes = _dynamic_axes(graph, dynamic)
    with torch.no_grad(), warnings.catch_warnings(), use_sampler(sampler):
        warnings.simplefilter('ignore')  # from the traced code of mmdet and others
        program = torch.export.export(graph, (image,), dynamic_shapes=(axes,))
        if {'height', 'width'} & set(dynamic):
            _check_any_size(graph, program, dynamic)
    if sampler == 'plugin' and not _calls(program, PLUGIN_OPERATOR):
        raise UsageError(
            'sampler=plugin is for multi-scale deformable attention, which this '
            f'{type(graph.model).__name__} does not have; use gather.'
        )
    return program


def export_onnx(
    graph: Graph,
    path: str | Path,
    opset: int = OPSET,
    sampler: str = 'grid_sample',
    dynamic: Collection[str] = ('batch',),
    simplify: bool = False,
) -> torch.export.ExportedProgram:
    """Write a graph as one ONNX file, weights included; return the exported program.

    ``opset`` is the version of ONNX's operators; ``simplify`` runs onnxslim; the others
    are those of :func:`export_program`. Metadata of the file and a log line name the
    runtimes that are reported to compute its operators wrongly. Without the packages,
    or if the opset is not supported, UsageError is raised and no file is written.
    """
    onnx = import_or_explain('onnx', 'to write ONNX files')
    optimizer = import_or_explain('onnxscript.optimizer', 'to write ONNX files')
    slim = import_or_explain('onnxslim', 'to simplify ONNX files') if simplify else None
    program = export_program(graph, sampler, dynamic)
    # Not optimize=True: rules of onnxscript 0.7.2 may fuse two clamps of one tensor
    # into constants with the same name. Runtimes optimize the graph anyway.
    with log_level(logging.getLogger('onnxscript'), logging.ERROR):
        exported = torch.onnx.export(
            program,
            input_names=['image'],
            output_names=list(graph.outputs),
            # The names alone; the program has the rest.
            dynamic_shapes=({AXES[name]: name for name in dynamic},),
            opset_version=opset,
            optimize=False,
            verbose=False,
            custom_translation_table=_translations(sampler),
        )
        written = exported.model.opset_imports['']
        if opset != written:
            raise UsageError(
                f'opset {opset} is not supported by torch and onnxscript, which wrote '
                f'{written}; {OPSETS}'
            )
        optimizer.inline(exported.model)
        optimizer.fold_constants(exported.model)
        optimizer.remove_unused_nodes(exported.model)
    model = exported.model_proto
    model = slim.slim(model) if simplify else model
    _describe(model, sampler, opset)
    onnx.save(model, path)
    return program


def compare_onnx(
    graph: Graph, path: str | Path, runtime: str = 'onnxruntime'
) -> dict[str, float]:
    """Run an ONNX file in a runtime on the CPU, and compare it with its graph.

    Inputs are one random image, and a batch of three, or larger images, where these
    axes are dynamic. The result is the maximum of each of :meth:`Graph.differences`.
    In place of TensorRT's plugin, its function in ONNX's operators is run. Without
    the runtime, ``onnxruntime`` or ``openvino``, UsageError is raised.
    """
    onnx = import_or_explain('onnx', 'to read ONNX files')
    model = onnx.load(path)
    if {x.key: x.value for x in model.metadata_props}.get(SAMPLER_KEY) == 'plugin':
        from mmsparse.deploy import plugin  # needs onnxscript

        model = plugin.inline_plugin(model)
    session = load_session(model.SerializeToString(), runtime)
    axes = {x.dim_param for x in model.graph.input[0].type.tensor_type.shape.dim}
    largest: dict[str, float] = {}
    batch = 3 if 'batch' in axes else 1
    inputs = [(1, graph.size), *((batch, size) for size in _larger_sizes(graph, axes))]
    for batch, size in inputs:
        image = _noise(graph, batch, size)
        with torch.no_grad():
            expected = graph(image)
        found = session(image.numpy())
        found = graph.differences(expected, [torch.from_numpy(x) for x in found])
        largest = {name: max(x, largest.get(name, 0)) for name, x in found.items()}
    return largest


def _dynamic_axes(graph: Graph, names: Collection[str]) -> dict[int, Any]:
    """Return the dynamic axes of the images for ``torch.export``."""
    if unknown := set(names) - set(AXES):
        raise UsageError(f'dynamic must be of {tuple(AXES)}; got {sorted(unknown)}.')
    if {'height', 'width'} & set(names) and graph.one_size:
        raise UsageError(
            f'dynamic must be without height and width for {type(graph.model).__name__}'
            f' with {type(graph.model.backbone).__name__}: {graph.one_size}; got '
            f'{sorted(names)}. Export one file for each size.'
        )
    axes = dict.fromkeys(AXES, torch.export.Dim.DYNAMIC)
    axes['batch'] = torch.export.Dim('batch', min=1)
    return {AXES[name]: axes[name] for name in names}


def _check_any_size(
    graph: Graph, program: torch.export.ExportedProgram, dynamic: Collection[str]
) -> None:
    """Raise UsageError if a program cannot run images larger than its example.

    It checks the size of its images itself, but ONNX files do not.
    """
    reason = ''
    if any(x.upper < LONGEST_SIDE for x in program.range_constraints.values()):
        reason = 'the example is smaller than a window'
    for size in _larger_sizes(graph, dynamic):
        try:
            program.module()(_noise(graph, 2 if 'batch' in dynamic else 1, size))
        except (AssertionError, RuntimeError) as error:
            reason = reason or str(error).splitlines()[0]
    if reason:
        raise UsageError(
            'shape must be larger for a dynamic height or width, or the model cannot '
            f'have them ({reason}); got {graph.size[0]} {graph.size[1]}.'
        )


def _larger_sizes(graph: Graph, dynamic: Collection[str]) -> list[tuple[int, int]]:
    """Return sizes to run, odd ones among them; that of the graph if it is fixed."""
    height, width = graph.size
    down, across = 'height' in dynamic, 'width' in dynamic
    if not (down or across):
        return [graph.size]
    return [
        (height + 37 * down, width + 32 * across),
        (height + 32 * down, width + (width + 1) * across),
    ]


def _calls(program: torch.export.ExportedProgram, operator: str) -> bool:
    """Return whether a program calls an operator."""
    return any(
        getattr(node.target, 'name', str)() == operator for node in program.graph.nodes
    )


def _translations(sampler: str) -> dict[Any, Any] | None:
    if sampler != 'plugin':
        return None
    from mmsparse.deploy import plugin  # needs onnxscript

    return plugin.translations()


def _describe(model: Any, sampler: str, opset: int) -> None:
    """Write the metadata of an ONNX model, and log notes about runtimes.

    Stack traces of the exporter, with paths of this machine, are removed.
    """
    for part in (*model.graph.node, *model.graph.value_info, model.graph):
        del part.metadata_props[:]
    notes = []
    if any(node.op_type == 'GridSample' for node in model.graph.node):
        notes = [text for first, text in GRID_SAMPLE_NOTES.items() if opset >= first]
    for text in notes:
        print_log(text, 'current', logging.WARNING)
    metadata = {SAMPLER_KEY: sampler, NOTES_KEY: '. '.join(notes)}
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)


def _noise(graph: Graph, batch: int, size: tuple[int, int]) -> Tensor:
    """Return reproducible random images, (B, C, H, W)."""
    generator = torch.Generator().manual_seed(batch)
    return 255 * torch.rand(batch, graph.channels, *size, generator=generator)


def _difference(expected: Tensor, found: Tensor) -> float:
    scale = expected.abs().max().clamp(min=1)
    return float(((expected - found).abs().max() / scale).nan_to_num(nan=torch.inf))


def _check_padding(preprocessor: BaseDataPreprocessor, size: tuple[int, int]) -> None:
    test_cfg = getattr(preprocessor, 'test_cfg', None) or {}  # mmseg's padding
    minimum = test_cfg.get('size') or (1, 1)
    divisor = test_cfg.get('size_divisor')
    divisor = divisor or getattr(preprocessor, 'pad_size_divisor', 1)
    padded = [
        -(-max(side, at_least) // divisor) * divisor
        for side, at_least in zip(size, minimum, strict=True)
    ]
    if padded != list(size):
        raise UsageError(
            f'shape must not be padded by the data preprocessor; it pads {size[0]} '
            f'{size[1]} to {padded[0]} {padded[1]}. Use that shape.'
        )
