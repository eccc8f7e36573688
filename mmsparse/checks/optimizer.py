"""Check how an optimizer is built, and how gradients are clipped."""

import importlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from mmsparse.checks.keywords import Place, advice, find_class, raise_unknown_type
from mmsparse.checks.signatures import function_parameters
from mmsparse.errors import UsageError

CLIPPING = {'norm': clip_grad_norm_, 'value': clip_grad_value_}
# Settings that mmengine's constructor of optimizers reads; optimizers can have others.
PARAMWISE = ('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult')
PARAMWISE += ('flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult')
PARAMWISE += ('bypass_duplicate',)
DEFAULT_CONSTRUCTOR = 'DefaultOptimWrapperConstructor'


def check_optimizer(cfg: Config, host: str) -> None:
    """Raise UsageError for a constructor, its options or a clipping that do not exist.

    Args:
        cfg: The config.
        host: Its library: mmdet, mmseg or mmpretrain.
    """
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, Mapping):
        _check_constructor(wrapper, host)
        _check_clipping(wrapper.get('clip_grad'))


def _check_constructor(wrapper: Mapping[str, Any], host: str) -> None:
    path, name = 'optim_wrapper', wrapper.get('constructor', DEFAULT_CONSTRUCTOR)
    library = importlib.import_module(f'{host}.registry')
    constructors = library.OPTIM_WRAPPER_CONSTRUCTORS
    if isinstance(name, str) and constructors.get(name) is None:
        place = Place(path, 'OPTIM_WRAPPER_CONSTRUCTORS', wrapper)
        raise_unknown_type(place, name, constructors, host, 'constructor')
    options = wrapper.get('paramwise_cfg') or {}
    if find_class(constructors, name) is DefaultOptimWrapperConstructor:
        _check_spelling(f'{path}.paramwise_cfg', options, PARAMWISE)
        for key, rates in (options.get('custom_keys') or {}).items():
            inner = f'{path}.paramwise_cfg.custom_keys[{key!r}]'
            _check_spelling(inner, rates, ('lr_mult', 'decay_mult'))


def _check_clipping(clipping: Any) -> None:
    path = 'optim_wrapper.clip_grad'
    if clipping is not None and not isinstance(clipping, Mapping):
        raise UsageError(
            f'{path}={clipping!r} must be a dict; write '
            f'clip_grad=dict(max_norm={clipping!r}).'
        )
    clip = CLIPPING.get(clipping.get('type', 'norm')) if clipping else None
    if clip is not None:
        accepted = {'type', *function_parameters(clip)} - {'parameters'}
        for key in clipping:
            if key not in accepted:
                raise UsageError(
                    f'{path}.{key}={clipping[key]!r} is not an argument of '
                    f'{clip.__name__}; {advice(key, sorted(accepted))}'
                )


def _check_spelling(path: str, settings: Any, names: Sequence[str]) -> None:
    """Raise UsageError for a setting that is nearly one of names."""
    for name in settings if isinstance(settings, Mapping) else ():
        close = get_close_matches(name, names, n=1, cutoff=0.8)
        if close and name not in names:
            raise UsageError(
                f'{path}.{name}={settings[name]!r} has no effect; did you mean '
                f'{close[0]}?'
            )
