"""Count the parameters, MACs and FLOPs of a model and its parts.

Counted are convolutions, linear layers, both matrix products of attention, and 4 MACs
per bilinearly sampled value; not normalization, activations and softmax. One MAC is two
FLOPs. Models run on torch's meta device, which computes shapes only.
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
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import StagedBackbone, image_channels
from mmsparse.models.classifier import Classifier

ROI_BOXES, ROI_MASKS = 1000, 100  # regions of interest, as mmdet counts them


@dataclass(frozen=True)
class Part:
    """The cost of a part of a model; a part of it has its name and a dot before."""

    name: str
    parameters: int
    macs: int | None  # for one image; None if the part did not run

    @property
    def flops(self) -> int | None:
        """Number of FLOPs for one image, 2 per MAC."""
        return None if self.macs is None else 2 * self.macs


def measure(
    model: nn.Module, shape: tuple[int, int], blocks: bool = False
) -> list[Part]:
    """Count the parameters and MACs of a model in inference.

    Heads that only training uses do not run. RoI heads count 1,000 boxes and 100 masks,
    without RoIAlign. A detector that needs the values of tensors, not only shapes, runs
    up to its neck. ``shape`` is the height and width of the image; for ``blocks``, see
    :func:`named_parts`. The last part is ``total`` or ``total up to the neck``.
    """
    model = _static(model)
    parts = dict(named_parts(model, blocks))
    counter, macs = _counter(), {}

    @contextmanager
    def count(name: str) -> Iterator[None]:
        before = counter.get_total_flops()
        yield
        flops = counter.get_total_flops() - before
        macs[name] = macs.get(name, 0) + flops // 2

    x = torch.empty(1, image_channels(model), *shape, device='meta')
    total = 'total'
    with torch.no_grad(), ops.reference_only(), inside_parts(parts, count):
        try:
            with counter:
                _run(model, x)
        except RuntimeError:  # of torch, at the value of a meta tensor
            if not hasattr(model, 'extract_feat'):
                raise
            macs.clear()
            with counter:
                model.extract_feat(x)
            total = 'total up to the neck'
    if 'roi_head.bbox_head' in macs:  # the forward method of roi_head does not run
        names = ('roi_head.bbox_head', 'roi_head.mask_head')
        macs['roi_head'] = sum(macs.get(name, 0) for name in names)
    measured = []
    for name, modules in parts.items():
        unused = 0 if isinstance(modules[0], nn.Embedding) else None  # not called
        part = Part(name, _num_parameters(*modules), macs.get(name, unused))
        if part.parameters or part.macs:
            measured.append(part)
    total_macs = counter.get_total_flops() // 2
    return [*measured, Part(total, _num_parameters(model), total_macs)]


def count_macs(run: Callable[[], Any]) -> int:
    """Count the MACs of a function on any device.

    In it, mmsparse's ops compute by their reference, whose MACs are those of the fast
    backends.
    """
    with torch.no_grad(), ops.reference_only(), _counter() as counter:
        run()
    return counter.get_total_flops() // 2


def published_classifiers() -> Iterator[Part]:
    """Measure every published ImageNet classifier at the image size of its weights.

    Each is one part, named ``FAMILY-ARCH``.
    """
    for backbone in BACKBONES.values():
        for arch, settings in backbone.arch_settings.items():
            if arch not in ('nano', 'pico'):
                side = getattr(settings, 'img_size', 224)
                yield _measure_classifier(backbone, arch, side)
    yield _measure_classifier(BACKBONES['dat'], 'pp-base', 384, suffix='-384')


def _measure_classifier(
    backbone_type: type[StagedBackbone], arch: str, side: int, suffix: str = ''
) -> Part:
    with torch.device('meta'):
        backbone = backbone_type(arch)
        model = Classifier(backbone, backbone.arch.embed_dims[-1], num_classes=1000)
    total = measure(model, (side, side))[-1]
    return replace(total, name=f'{backbone.family}-{arch}{suffix}')


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
        yield name, [child]
        if isinstance(child, StagedBackbone):
            for part, modules in named_parts(child, blocks):
                yield f'{name}.{part}', modules
        elif name == 'roi_head':
            for part in ('bbox_head', 'mask_head'):
                if heads := _as_list(getattr(child, part, None)):
                    yield f'{name}.{part}', heads


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
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
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
        model.rpn_head(model.extract_feat(x))
        _run_roi_head(model.roi_head, x)
    else:
        shape = tuple(x.shape[-2:])
        metainfo = dict(batch_input_shape=shape, img_shape=shape)
        model(x, [BaseDataElement(metainfo=metainfo)], mode='tensor')


def _run_roi_head(roi_head: nn.Module, x: Tensor) -> None:
    for name, count in (('bbox', ROI_BOXES), ('mask', ROI_MASKS)):
        heads = _as_list(getattr(roi_head, f'{name}_head', None))
        extractors = _as_list(getattr(roi_head, f'{name}_roi_extractor', None))
        for head, extractor in zip(heads, extractors, strict=True):
            size = extractor.roi_layers[0].output_size
            head(x.new_empty(count, extractor.out_channels, *size))


def _as_list(modules: nn.Module | None) -> list[nn.Module]:
    """Return the heads of a cascade, one for each stage, or the only head."""
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


def _num_parameters(*modules: nn.Module) -> int:
    return sum(x.numel() for module in modules for x in module.parameters())
