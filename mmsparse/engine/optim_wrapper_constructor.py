"""Optimizer wrapper constructor that asks the backbone: weight decay, layer depth."""

from numbers import Real
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmsparse.errors import UsageError
from mmsparse.registry import OPTIM_WRAPPER_CONSTRUCTORS

RATE = 'layer_decay_rate'
SETTING = f'optim_wrapper.paramwise_cfg.{RATE}'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BackboneOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor with methods of the backbone.

    - ``no_weight_decay()``: modules with this method, such as the backbones of mmsparse
      and timm, return the names of their parameters that must not decay. These get a
      weight decay of 0 and the learning rate of ``paramwise_cfg``. By itself MMEngine
      ignores ``norm_decay_mult`` for all parameters that match a custom key, for
      example the one that sets the learning rate of the backbone.
    - ``get_layer_depth(name, prefix)``: with ``layer_decay_rate`` in ``paramwise_cfg``,
      in (0, 1], the learning rate of a parameter is that of ``paramwise_cfg`` times
      this rate for each layer of the backbone after it. Backbones of mmsparse and
      several of mmpretrain have this method, in models of mmdet and mmseg, too. For
      others UsageError is raised.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        # Without any option MMEngine would not call add_params.
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(custom_keys={}))
        self.layer_decay_rate = self.paramwise_cfg.get(RATE)
        _check_rate(self.paramwise_cfg, self.base_lr)

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **options: Any
    ) -> None:
        """Add the parameters of a module; those that it names have no weight decay."""
        first = len(params)
        super().add_params(params, module, prefix, **options)
        if hasattr(module, 'no_weight_decay'):
            _exempt(params[first:], module, prefix)
        if not prefix and self.layer_decay_rate is not None:
            self._decay_by_layer(params, module)

    def _decay_by_layer(self, params: list[dict], model: nn.Module) -> None:
        backbones = _backbones_with_depths(model)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in params:
            name = names[id(group['params'][0])]
            prefix = max(filter(name.startswith, backbones), key=len, default=None)
            if prefix is not None:
                depth, count = backbones[prefix].get_layer_depth(name, prefix)
                scale = self.layer_decay_rate ** (count - depth - 1)
                group['lr'] = group.get('lr', self.base_lr) * scale
        rates = [group.get('lr', self.base_lr) for group in params]
        print_log(
            f'{RATE}={self.layer_decay_rate}: learning rates from {min(rates):.3g} to '
            f'{max(rates):.3g}',
            logger='current',
        )


def _exempt(groups: list[dict], module: nn.Module, prefix: str) -> None:
    """Disable the weight decay of parameters that a module names."""
    exempt = module.no_weight_decay()  # timm's models also name absent parameters
    names = {id(x): name for name, x in module.named_parameters() if name in exempt}
    for group in groups:
        name = names.get(id(group['params'][0]))
        if name is not None:
            group['weight_decay'] = 0.0
            full_name = f'{prefix}.{name}' if prefix else name
            print_log(f'no_weight_decay -- {full_name}', logger='current')


def _backbones_with_depths(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have ``get_layer_depth``, by prefix of their parameters.

    mmpretrain's models have a method of this name, which calls that of the backbone.
    """
    found = {
        f'{name}.' if name else '': module
        for name, module in model.named_modules()
        if hasattr(module, 'get_layer_depth') and not hasattr(module, 'backbone')
    }
    if not found:
        backbone = getattr(model, 'backbone', model)
        raise UsageError(
            f'{SETTING} needs a backbone with get_layer_depth(); '
            f'{type(backbone).__name__} has none. Remove the setting, or take a '
            f'backbone of mmsparse or mmpretrain.'
        )
    return found


def _check_rate(paramwise_cfg: dict, base_lr: float | None) -> None:
    if 'decay_rate' in paramwise_cfg:
        raise UsageError(
            f'optim_wrapper.paramwise_cfg.decay_rate is of the constructors of mmdet '
            f'and mmseg; name it {RATE}, and remove num_layers and decay_type.'
        )
    rate = paramwise_cfg.get(RATE)
    if rate is None:
        return
    is_number = isinstance(rate, Real) and not isinstance(rate, bool)
    if not (is_number and 0 < rate <= 1):
        raise UsageError(f'{SETTING} must be a number in (0, 1]; got {rate!r}.')
    if base_lr is None:
        raise UsageError(f'{SETTING} needs optim_wrapper.optimizer.lr; it is not set.')
