"""Parameters and multiply-adds of a model and of its parts.

Counted are convolutions, linear maps and the two products of an attention, and four for
each value that is sampled bilinearly; not normalization, activation and softmax.
Nothing is computed: tensors on torch's meta device have shapes only.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmsparse import ops
from mmsparse.conversion.families import FAMILIES, Family
from mmsparse.models.backbones.base import StagedBackbone

HEADS = ('head', 'decode_head')  # those that need nothing but features


@dataclass(frozen=True)
class Part:
    """What one part of a model costs.

    Args:
        name: Name of the part; parts of a backbone have its name and a dot before.
        parameters: Number of its parameters.
        macs: Number of its multiply-adds for one picture; None if it was not run.
    """

    name: str
    parameters: int
    macs: int | None


def measure(
    model: nn.Module, shape: tuple[int, int], blocks: bool = False
) -> list[Part]:
    """Count the parameters and multiply-adds of a model.

    Args:
        model: A backbone, or a host's model: classifiers and segmentors are run as a
            whole, without auxiliary heads, and detectors up to their neck.
        shape: Height and width of the picture.
        blocks: Count the blocks of every stage, too.

    Returns:
        The parts that have parameters or are run, in the order of the model, a backbone
        of ours also by stage; and the total at the end.
    """
    model = copy.deepcopy(model).to('meta').eval()
    counter = _counter()
    parts = dict(named_parts(model, blocks))
    macs: dict[str, int] = {}
    for name, modules in parts.items():
        for module in modules:
            _watch(module, name, counter, macs)
    with torch.no_grad(), ops.reference_only(), counter:
        _run(model, torch.empty(1, 3, *shape, device='meta'))
    measured = [
        Part(name, _num_parameters(*modules), macs.get(name))
        for name, modules in parts.items()
    ]
    total = Part('total', _num_parameters(model), counter.get_total_flops() // 2)
    return [*(part for part in measured if part.parameters or part.name in macs), total]


def count(run: Callable[[], Any]) -> int:
    """Count the multiply-adds of whatever a function computes, on any device.

    Args:
        run: The function; what it computes in an attention of ours is counted by the
            plain definition, whatever the fast paths do.

    Returns:
        The number of its multiply-adds.
    """
    with torch.no_grad(), ops.reference_only(), _counter() as counter:
        run()
    return counter.get_total_flops() // 2


def published_classifiers() -> Iterator[Part]:
    """Measure every published classifier on pictures of the size that it is made for.

    Yields:
        The classifier as one part, with the family and the arch for a name.
    """
    for family in FAMILIES.values():
        for arch, settings in family.backbone.arch_settings.items():
            if arch != 'nano':  # ours
                side = settings.get('img_size', 224)
                yield _classifier(family, arch, side, f'{family.name}-{arch}')
    # The same model, fine-tuned on larger pictures.
    yield _classifier(FAMILIES['dat'], 'pp-base', 384, 'dat-pp-base-384')


def _classifier(family: Family, arch: str, side: int, name: str) -> Part:
    with torch.device('meta'):
        backbone = family.backbone(arch)
    total = measure(backbone, (side, side))[-1]
    weights = 1000 * family.widths(arch)[-1]  # of the linear map to 1000 classes
    return Part(name, total.parameters + weights + 1000, total.macs + weights)


def named_parts(
    model: nn.Module, blocks: bool = False
) -> Iterator[tuple[str, list[nn.Module]]]:
    """Find the parts of a model with the modules that are called in them.

    Args:
        model: A backbone, or a host's model.
        blocks: Find the blocks of every stage, too.

    Yields:
        Name and modules; parts of a part have its name and a dot before.
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


def _counter() -> FlopCounterMode:
    formulas = {torch.ops.aten.grid_sampler_2d: sampling_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _watch(
    module: nn.Module, name: str, counter: FlopCounterMode, macs: dict[str, int]
) -> None:
    """Add to ``macs[name]`` what is counted while the module runs."""
    starts: list[int] = []

    def start(*call: Any) -> None:
        starts.append(counter.get_total_flops())

    def stop(*call: Any) -> None:
        macs[name] = macs.get(name, 0) + (counter.get_total_flops() - starts.pop()) // 2

    module.register_forward_pre_hook(start)
    module.register_forward_hook(stop)


def _run(model: nn.Module, x: torch.Tensor) -> None:
    if not hasattr(model, 'extract_feat'):
        model(x)
        return
    features = model.extract_feat(x)
    for name in HEADS:
        if getattr(model, name, None) is not None:
            getattr(model, name)(features)


def _num_parameters(*modules: nn.Module) -> int:
    return sum(x.numel() for module in modules for x in module.parameters())


def sampling_flops(*shapes: Any, out_shape: Any = None, **options: Any) -> int:
    """Two for each of the four multiply-adds of a value, as the counter has it."""
    return 2 * 4 * prod(out_shape)
