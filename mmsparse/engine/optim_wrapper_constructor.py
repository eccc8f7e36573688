"""Optimizer wrapper constructor that lets a backbone name what must not decay."""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmsparse.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, without weight decay for what a backbone names.

    Every module with a method ``no_weight_decay()``, as mmsparse's backbones have it,
    returns names of its own parameters there. These get a weight decay of 0, whatever
    ``paramwise_cfg`` says; their learning rate is still that of ``paramwise_cfg``. In
    MMEngine a custom key for the backbone, for example its learning rate, switches off
    ``norm_decay_mult`` for its parameters.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        # MMEngine does not look at the parameters one by one without options.
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(custom_keys={}))

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **options: Any
    ) -> None:
        """Add the parameters of a module; those that it names do not decay."""
        first = len(params)
        super().add_params(params, module, prefix, **options)
        if not hasattr(module, 'no_weight_decay'):
            return
        names = {id(module.get_parameter(x)): x for x in module.no_weight_decay()}
        for group in params[first:]:
            name = names.get(id(group['params'][0]))
            if name is not None:
                group['weight_decay'] = 0.0
                place = f'{prefix}.{name}' if prefix else name
                print_log(f'no_weight_decay -- {place}', logger='current')
