"""Models of the hosts as graphs: programs of torch.export, and ONNX files.

A graph takes raw pictures and returns what the host computes from them; the batch is
free, the size of the pictures is fixed. Needs torch 2.9 or later; ONNX files need onnx
and onnxscript, and onnxruntime to be checked.
"""

import importlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.utils import digit_version
from torch import Tensor, nn

from mmsparse._logging import log_level
from mmsparse.errors import UsageError
from mmsparse.ops.tokens import gather_tokens

OLDEST_TORCH = '2.9'
TOLERANCE = 1e-4
OPSETS = '18 to 25 work with torch 2.12 and onnxscript 0.7.2'
EXTRA = "pip install 'mmsparse[export]'"


class Graph(nn.Module):
    """A host's model from raw pictures to what it tells of them.

    The input is ``image``: RGB from 0 to 255, float32, (B, 3, H, W), resized to the
    size of the graph and not padded. Color order, mean and standard deviation of the
    model's data preprocessor are part of the graph.

    Args:
        model: The model, which is put into eval mode.
        size: Height and width of the pictures.

    Raises:
        UsageError: The data preprocessor would pad pictures of this size.
    """

    outputs: tuple[str, ...] = ('logits',)

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model.eval()
        self.size = size
        preprocessor = model.data_preprocessor
        _check_padding(preprocessor, size)
        # The hosts load BGR; who does not convert it has learned it.
        self.flip = not any(getattr(preprocessor, name, False) for name in CONVERSIONS)
        normalize = getattr(preprocessor, '_enable_normalize', False)
        mean, std = (
            (preprocessor.mean, preprocessor.std)
            if normalize
            else (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        )
        self.register_buffer('mean', mean.clone())
        self.register_buffer('std', std.clone())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Pictures, (B, 3, H, W), to one tensor for each of ``outputs``."""
        x = image.flip(1) if self.flip else image
        return self.run((x - self.mean) / self.std)

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs.

        Args:
            x: What the data preprocessor makes of pictures, (B, 3, H, W).

        Returns:
            One tensor for each of ``outputs``.
        """
        raise NotImplementedError

    def differences(
        self, expected: Sequence[Tensor], found: Sequence[Tensor]
    ) -> dict[str, float]:
        """Tell how far other outputs are from expected ones.

        Args:
            expected: One tensor for each of ``outputs``.
            found: The same.

        Returns:
            The largest difference by output, as a part of the largest expected number
            if that is above 1.
        """
        return {
            name: _difference(*pair)
            for name, *pair in zip(self.outputs, expected, found, strict=True)
        }


# What the data preprocessors of mmpretrain, mmseg and mmdet call the same flag.
CONVERSIONS = ('to_rgb', 'channel_conversion', '_channel_conversion')


class ClassifierGraph(Graph):
    """Logits of the classes, (B, classes); their softmax are mmpretrain's scores."""

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to logits."""
        return (self.model.head(self.model.extract_feat(x)),)


class SegmentorGraph(Graph):
    """Logits of the classes at every pixel of the whole picture, (B, classes, H, W)."""

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to logits."""
        return (self.model.encode_decode(x, [dict(img_shape=self.size)]),)


class DetectorGraph(Graph):
    """The best detections, best first, as mmdet's ``predict`` tells them.

    ``boxes`` (x1, y1, x2, y2) in pixels of the input, (B, K, 4), ``scores`` (B, K) from
    0 to 1 and ``labels`` (B, K), from 0; K is the head's ``max_per_img``.

    Args:
        model: Deformable DETR, DINO, Focus-DETR, or what is derived from them.
        size: Height and width of the pictures.

    Raises:
        UsageError: It is another detector, or pictures of this size would be padded.
    """

    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, model: BaseModel, size: tuple[int, int]) -> None:
        from mmsparse.deploy import fixed_size  # needs mmdet

        try:
            model = fixed_size.with_fixed_sizes(model)
        except ValueError as error:
            raise UsageError(str(error)) from error
        super().__init__(model, size)

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) to boxes, scores and labels."""
        states = self.model.forward_transformer(self.model.extract_feat(x))
        logits, boxes = (layers[-1] for layers in self.model.bbox_head(**states))
        scores, labels, rows = self._best(logits)
        centers, sides = gather_tokens(boxes, rows).chunk(2, dim=-1)
        corners = torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)
        ends = x.new_tensor(self.size[::-1]).repeat(2)
        return corners.clamp(0, 1) * ends, scores, labels

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Q, classes) to scores, labels and queries of the best, (B, K) each."""
        head = self.model.bbox_head
        num_queries, classes = logits.shape[1:]
        wanted = head.test_cfg.get('max_per_img', num_queries)
        if head.loss_cls.use_sigmoid:  # a query may tell several classes
            scores = logits.sigmoid().flatten(1)
            scores, places = scores.topk(min(wanted, num_queries * classes))
            return scores, places % classes, places // classes
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, rows = scores.topk(min(wanted, num_queries))
        return scores, labels.gather(1, rows), rows

    def differences(
        self, expected: Sequence[Tensor], found: Sequence[Tensor]
    ) -> dict[str, float]:
        """Compare the scores in their order, and every box with the nearest alike.

        Detections of equal scores come in any order, and those with the last score
        stand for others that are not told.

        Args:
            expected: Boxes, scores and labels.
            found: The same.

        Returns:
            The largest difference of scores, and of boxes as a part of the picture.
        """
        boxes, scores, labels = expected
        distances = (boxes[:, :, None] - found[0][:, None]).abs()
        distances = distances.amax(-1) / max(self.size)  # (B, K, K)
        alike = (scores[:, :, None] - found[1][:, None]).abs() <= TOLERANCE
        alike &= labels[:, :, None] == found[2][:, None]
        nearest = distances.where(alike, torch.inf).amin(-1)
        settled = scores > scores[:, -1:] + TOLERANCE
        return dict(
            boxes=float(nearest.where(settled, 0).max()),
            scores=_difference(scores, found[1]),
        )


def build_graph(model: BaseModel, size: tuple[int, int]) -> Graph:
    """Wrap a host's model so that it can be exported.

    Args:
        model: A classifier of mmpretrain, an encoder-decoder of mmsegmentation, or a
            Deformable DETR, DINO or Focus-DETR of mmdet.
        size: Height and width of the pictures.

    Returns:
        The graph, with the weights of the model.

    Raises:
        UsageError: The model is none of these, or would pad pictures of this size.
    """
    host = type(model).__module__.partition('.')[0]
    if hasattr(model, 'encode_decode'):
        return SegmentorGraph(model, size)
    if hasattr(model, 'bbox_head') or host == 'mmdet':
        return DetectorGraph(model, size)
    if hasattr(model, 'extract_feat') and getattr(model, 'head', None) is not None:
        return ClassifierGraph(model, size)
    raise UsageError(
        'The model must be a classifier, an encoder-decoder for segmentation or a '
        f'detection transformer; got {type(model).__name__}.'
    )


def export_program(graph: Graph) -> torch.export.ExportedProgram:
    """Trace a graph with ``torch.export``.

    Args:
        graph: The graph.

    Returns:
        The program; its batch is dynamic.

    Raises:
        UsageError: This torch is older than 2.9.
    """
    if digit_version(torch.__version__) < digit_version(OLDEST_TORCH):
        raise UsageError(
            f'export needs torch {OLDEST_TORCH} or later; this is {torch.__version__}'
        )
    batch = torch.export.Dim('batch', min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the hosts' code, which is traced
        return torch.export.export(
            graph, (_pictures(graph, 2),), dynamic_shapes=({0: batch},)
        )


def export_onnx(
    graph: Graph, path: str | Path, opset: int | None = None
) -> torch.export.ExportedProgram:
    """Write a graph as one ONNX file, weights included.

    Args:
        graph: The graph.
        path: The file, in a folder that exists.
        opset: Version of ONNX's operators; what torch recommends if None.

    Returns:
        The program that the file was made of.

    Raises:
        UsageError: onnx or onnxscript is not installed, torch is older than 2.9, or
            they cannot write this opset; then there is no file.
    """
    _import('onnx', 'to write ONNX files')
    optimizer = _import('onnxscript.optimizer', 'to write ONNX files')
    program = export_program(graph)
    # Not optimize=True: onnxscript's rules, as of 0.7.2, may fuse two clamps of one
    # tensor into constants of one name. Runtimes fuse for themselves.
    with log_level(logging.getLogger('onnxscript'), logging.ERROR):
        exported = torch.onnx.export(
            program,
            input_names=['image'],
            output_names=list(graph.outputs),
            dynamic_shapes=({0: 'batch'},),  # the name alone; the program has the rest
            opset_version=opset,
            optimize=False,
            verbose=False,
        )
        written = exported.model.opset_imports['']
        if opset not in (None, written):
            raise UsageError(
                f'opset: torch and onnxscript could not write version {opset} of '
                f"ONNX's operators, and took {written}; {OPSETS}"
            )
        optimizer.inline(exported.model)
        optimizer.fold_constants(exported.model)
        optimizer.remove_unused_nodes(exported.model)
    exported.save(path, external_data=False)
    return program


def compare_onnx(
    graph: Graph, path: str | Path, batch_sizes: Sequence[int] = (1, 3)
) -> dict[str, float]:
    """Run a file with onnxruntime on the CPU, and compare it with its graph.

    Args:
        graph: What the file was made of.
        path: The file.
        batch_sizes: Numbers of pictures, of noise, to run it on.

    Returns:
        The largest difference by output, see :meth:`Graph.differences`.

    Raises:
        UsageError: onnxruntime is not installed.
    """
    runtime = _import('onnxruntime', 'to check ONNX files')
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    largest: dict[str, float] = {}
    for batch in batch_sizes:
        image = _pictures(graph, batch)
        with torch.no_grad():
            expected = graph(image)
        found = session.run(None, {'image': image.numpy()})
        told = graph.differences(expected, [torch.from_numpy(x) for x in found])
        largest = {name: max(x, largest.get(name, 0)) for name, x in told.items()}
    return largest


def _pictures(graph: Graph, batch: int) -> Tensor:
    """Noise, the same every time, (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(batch)
    return 255 * torch.rand(batch, 3, *graph.size, generator=generator)


def _difference(expected: Tensor, found: Tensor) -> float:
    scale = expected.abs().max().clamp(min=1)
    # What is no number differs, too.
    return float(((expected - found).abs().max() / scale).nan_to_num(nan=torch.inf))


def _check_padding(preprocessor: BaseDataPreprocessor, size: tuple[int, int]) -> None:
    # mmseg pads tests by settings of their own.
    own = getattr(preprocessor, 'test_cfg', None) or {}
    least = own.get('size') or (1, 1)
    divisor = own.get('size_divisor') or getattr(preprocessor, 'pad_size_divisor', 1)
    padded = [
        -(-max(side, at_least) // divisor) * divisor
        for side, at_least in zip(size, least, strict=True)
    ]
    if padded != list(size):
        raise UsageError(
            f'shape must be one that the data preprocessor does not pad; it pads '
            f'{size[0]} {size[1]} to {padded[0]} {padded[1]}. Take that.'
        )


def _import(name: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f'{name.partition(".")[0]} is needed {purpose}, and not installed: {EXTRA}'
        ) from error
