"""Optimizer wrapper constructor that exempts parameters named by the backbone."""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmsparse.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor that also respects ``no_weight_decay()``.

    Modules with this method, such as the backbones of mmsparse and timm, return the
    names of their parameters that must not decay. These get a weight decay of 0 and the
    learning rate of ``paramwise_cfg``. By itself MMEngine ignores ``norm_decay_mult``
    for all parameters that match a custom key, for example the one that sets the
    learning rate of the backbone.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        # Without any option MMEngine would not call add_params.
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(custom_keys={}))

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **options: Any
    ) -> None:
        """Add the parameters of a module; those that it names have no weight decay."""
        first = len(params)
        super().add_params(params, module, prefix, **options)
        if not hasattr(module, 'no_weight_decay'):
            return
        exempt = module.no_weight_decay()  # timm's models also name absent parameters
        names = {id(x): name for name, x in module.named_parameters() if name in exempt}
        for group in params[first:]:
            name = names.get(id(group['params'][0]))
            if name is not None:
                group['weight_decay'] = 0.0
                full_name = f'{prefix}.{name}' if prefix else name
                print_log(f'no_weight_decay -- {full_name}', logger='current')
