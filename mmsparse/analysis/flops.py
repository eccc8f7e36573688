"""Count the parameters, MACs and FLOPs of a model and its parts.

Counted are convolutions, linear layers, both matrix products of attention, and 4 MACs
per bilinearly sampled value; not normalization, activations and softmax. One MAC is two
FLOPs. Models run on torch's meta device, which computes shapes only, or on the CPU.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmsparse import ops
from mmsparse.errors import format_error
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import StagedBackbone, image_channels
from mmsparse.models.classifier import Classifier

ROI_BOXES, ROI_MASKS = 1000, 100  # regions of interest, as mmdet counts them
ROI = 'roi_head.'
NEEDS_MORE = 'needs other inputs than boxes'


@dataclass(frozen=True)
class Part:
    """The cost of a part of a model; a part of it has its name and a dot before."""

    name: str
    parameters: int
    macs: int | None  # for one image; None if the part did not run
    without: tuple[str, ...] = ()  # of the total: parts that did not run
    failure: str = ''  # of the total: why not, '' if only training uses them

    @property
    def flops(self) -> int | None:
        """Number of FLOPs for one image, 2 per MAC."""
        return None if self.macs is None else 2 * self.macs


def measure(
    model: nn.Module, shape: tuple[int, int], blocks: bool = False
) -> list[Part]:
    """Count the parameters and MACs of a model in inference.

    Heads that only training uses do not run. RoI heads count 1,000 boxes and 100 masks,
    without RoIAlign. A model that needs the values of tensors, not only shapes, runs on
    the CPU; one that fails there too runs up to its neck. ``shape`` is the height and
    width of the image; for ``blocks``, see :func:`named_parts`. The last part is
    ``total``, and names those that did not run.
    """
    counted, failure = _run_anyhow(model, shape, blocks)
    if roi_heads := [x for name, x in counted.macs.items() if name.startswith(ROI)]:
        counted.macs['roi_head'] = sum(roi_heads)  # whose forward does not run
    measured = []
    for name, modules in counted.parts.items():
        without_macs = not modules or isinstance(modules[0], nn.Embedding)
        default = 0 if without_macs else None
        part = Part(name, _num_parameters(*modules), counted.macs.get(name, default))
        if part.parameters or part.macs:
            measured.append(part)
    unused = [part.name for part in measured if part.macs is None]
    without = tuple(x for x in unused if x.rpartition('.')[0] not in unused)
    if counted.macs.keys() & {'roi_head'}:
        failure = failure or NEEDS_MORE
    total = Part('total', _num_parameters(model), counted.total, without, failure)
    return [*measured, total]


@dataclass(frozen=True)
class _Counted:
    """MACs of a run: parts by name, MACs of those that ran, and of the whole model."""

    parts: dict[str, list[nn.Module]]
    macs: dict[str, int]
    total: int


def _run_anyhow(
    model: nn.Module, shape: tuple[int, int], blocks: bool
) -> tuple[_Counted, str]:
    """Count a run of the whole model or, if that fails, up to the neck, and why."""
    try:
        return _count(_static(model), _run, shape, blocks), ''
    except Exception:  # at the value of a meta tensor
        if not hasattr(model, 'extract_feat'):
            raise
    try:
        return _count(_on_cpu(model), _run, shape, blocks), ''
    except Exception as error:  # noqa: BLE001 - heads raise anything
        counted = _count(_static(model), _run_to_neck, shape, blocks)
        return counted, format_error(error)


def _count(
    model: nn.Module,
    run: Callable[[nn.Module, Tensor], None],
    shape: tuple[int, int],
    blocks: bool,
) -> _Counted:
    parts = dict(named_parts(model, blocks))
    counter, macs = _counter(), {}

    @contextmanager
    def count(name: str) -> Iterator[None]:
        before = counter.get_total_flops()
        yield
        flops = counter.get_total_flops() - before
        macs[name] = macs.get(name, 0) + flops // 2

    device = next((x.device for x in model.parameters()), 'meta')
    x = torch.zeros(1, image_channels(model), *shape, device=device)
    with torch.no_grad(), ops.reference_only(), inside_parts(parts, count), counter:
        run(model, x)
    return _Counted(parts, macs, counter.get_total_flops() // 2)


def count_macs(run: Callable[[], Any]) -> int:
    """Count the MACs of a function on any device.

    In it, mmsparse's ops compute by their reference, whose MACs are those of the fast
    backends.
    """
    with torch.no_grad(), ops.reference_only(), _counter() as counter:
        run()
    return counter.get_total_flops() // 2


def published_classifiers() -> list[tuple[type[StagedBackbone], str, int]]:
    """Return backbone, arch and image size of every published ImageNet classifier."""
    published = [
        (backbone, arch, getattr(settings, 'img_size', 224))
        for backbone in BACKBONES.values()
        for arch, settings in backbone.arch_settings.items()
        if arch not in ('nano', 'pico')
    ]
    return [*published, (BACKBONES['dat'], 'pp-base', 384)]


def measure_classifier(
    backbone_type: type[StagedBackbone], arch: str, side: int
) -> Part:
    """Measure an ImageNet classifier; return it as one part, named ``FAMILY-ARCH``.

    The name ends with the image size unless that is the arch's.
    """
    with torch.device('meta'):
        model = Classifier(backbone_type(arch))
    size = '' if side == getattr(model.backbone.arch, 'img_size', 224) else f'-{side}'
    total = measure(model, (side, side))[-1]
    return replace(total, name=f'{backbone_type.family}-{arch}{size}')


def named_parts(
    model: nn.Module, blocks: bool = False
) -> Iterator[tuple[str, list[nn.Module]]]:
    """Split a backbone or a model of mmdet, mmseg or mmpretrain into parts.

    Yield name and modules of the parts in the order of the model. mmsparse's backbones
    are split into stages, and with ``blocks`` these into blocks.
    """
    if isinstance(model, StagedBackbone):
        for i, stage in enumerate(model.stages):
            yield f'stage {i + 1}', [model.downsamples[i], *stage]
            if blocks:
                yield f'stage {i + 1}.downsampling', [model.downsamples[i]]
                for name, block in stage.named_children():
                    name = f'block {int(name) + 1}' if name.isdigit() else name
                    yield f'stage {i + 1}.{name}', [block]
        if hasattr(model, 'out_norms'):
            yield 'out_norms', list(model.out_norms.values())
        return
    for name, child in model.named_children():
        yield name, _as_list(child)
        if isinstance(child, StagedBackbone):
            for part, modules in named_parts(child, blocks):
                yield f'{name}.{part}', modules
        elif name == 'roi_head':
            for part, head in child.named_children():
                if part.endswith('_head'):
                    yield f'{name}.{part}', _as_list(head)


@contextmanager
def inside_parts(
    parts: Mapping[str, Iterable[nn.Module]],
    context: Callable[[str], AbstractContextManager],
) -> Iterator[None]:
    """Run the ``forward`` methods of parts inside a context.

    ``context`` is called with the name of a part; it returns the context of one call.
    """
    patched = [(name, module) for name, modules in parts.items() for module in modules]
    try:
        for name, module in patched:
            module.forward = partial(_inside, context, name, module.forward)
        yield
    finally:
        for _, module in patched:
            vars(module).pop('forward', None)


def _inside(
    context: Callable, name: str, forward: Callable, *args: Any, **inputs: Any
) -> Any:
    # Not a hook: mmdet and mmseg call the forward method of heads directly.
    with context(name):
        return forward(*args, **inputs)


def format_count(count: int) -> str:
    """Format a count with a unit: ``2.23 G``, ``13.1 M`` or ``64.0 k``."""
    for unit, size in (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if count >= size:
            return f'{count / size:.{2 if count < 10 * size else 1}f} {unit}'
    return str(count)


def sampling_flops(*shapes: Any, out_shape: Any = None, **options: Any) -> int:
    """Return the FLOPs of ``grid_sample``: 4 MACs per output value."""
    return 2 * 4 * prod(out_shape)


def _static(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device; shapes of feature maps are not in tensors."""
    # Without gradients: torch's counter fails at parameters that are queries.
    model = copy.deepcopy(model).to('meta').eval().requires_grad_(False)
    if not hasattr(model, 'forward_transformer'):
        return model
    from mmsparse.deploy.fixed_size import with_fixed_sizes

    try:
        return with_fixed_sizes(model)
    except ValueError:  # another detection transformer, DETR for example
        return model


def _on_cpu(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU; weights on the meta device become zero."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    if not any(x.is_meta for x in copied.parameters()):
        return copied.cpu()
    copied = copied.to_empty(device='cpu')
    for x in (*copied.parameters(), *copied.buffers()):
        x.zero_()
    return copied


def _counter() -> FlopCounterMode:
    formulas = {torch.ops.aten.grid_sampler_2d: sampling_flops}
    # torch's counter has no formula for the fused attention of nn.MultiheadAttention
    # on CPUs.
    fused = getattr(torch.ops.aten, '_scaled_dot_product_flash_attention_for_cpu', None)
    if fused is not None:
        formulas[fused] = _attention_flops
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *others: Any, **options: Any
) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _run(model: nn.Module, x: Tensor) -> None:
    if not hasattr(model, 'extract_feat'):  # a backbone
        model(x)
    elif hasattr(model, 'roi_head'):
        features = model.extract_feat(x)
        model.rpn_head(features)
        if getattr(model, 'semantic_head', None) is not None:
            model.semantic_head(features)
        _run_roi_head(model.roi_head, x)
    else:
        shape = tuple(x.shape[-2:])
        metainfo = dict(batch_input_shape=shape, img_shape=shape)
        model(x, [BaseDataElement(metainfo=metainfo)], mode='tensor')


def _run_to_neck(model: nn.Module, x: Tensor) -> None:
    model.extract_feat(x)


def _run_roi_head(roi_head: nn.Module, x: Tensor) -> None:
    for name, count in (('bbox', ROI_BOXES), ('mask', ROI_MASKS)):
        heads = _as_list(getattr(roi_head, f'{name}_head', None))
        extractors = _as_list(getattr(roi_head, f'{name}_roi_extractor', None))
        for head, extractor in zip(heads, extractors, strict=True):
            size = extractor.roi_layers[0].output_size
            head(x.new_empty(count, extractor.out_channels, *size))


def _as_list(module: nn.Module | None) -> list[nn.Module]:
    """Return the modules in a list or dict, whose forward does not run, or the only."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return [x for child in module.children() for x in _as_list(child)]
    return [] if module is None else [module]


def _num_parameters(*modules: nn.Module) -> int:
    return sum(x.numel() for module in modules for x in module.parameters())
