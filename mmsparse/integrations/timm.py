"""Models of mmsparse in timm, as ``mmsparse_<family>_<arch>``."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mmsparse.errors import UsageError
from mmsparse.factory import create_model, list_models
from mmsparse.factory.data_config import CLASSES, default_data
from mmsparse.factory.names import split_name
from mmsparse.models.backbones import BACKBONES
from mmsparse.weights import entries
from mmsparse.weights.hub import SCHEME as HUB

# Arguments of timm's functions that are not for the model; it returns feature maps
# without one of timm's wrappers.
IGNORED = (
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'pretrained_model_args',
    'cache_dir',
    'feature_cls',
)


def register_timm() -> list[str]:
    """Register all models in timm; does nothing for those that are registered.

    Then ``timm.create_model('mmsparse_dat_pp_tiny')`` is
    :func:`mmsparse.create_model`, and ``timm.list_models('mmsparse*')`` has the names.

    Returns:
        The names in timm.

    Raises:
        ModuleNotFoundError: timm is not installed.
    """
    from timm.models import generate_default_cfgs, is_model, register_model

    names = {timm_name(name): name for name in list_models()}
    module = globals()
    module['default_cfgs'] = generate_default_cfgs(
        {new: _default_cfg(name) for new, name in names.items()}
    )
    for new, name in names.items():
        if not is_model(new):
            register_model(_entry_point(new, name))
    return list(names)


def timm_name(name: str) -> str:
    """Return the name of a model in timm."""
    return f'mmsparse_{name.replace("-", "_")}'


def _entry_point(new: str, name: str) -> Callable[..., nn.Module]:
    def build(pretrained: str | bool = False, **arguments: Any) -> nn.Module:
        cfg = _merged_cfg(new, arguments)
        source = pretrained
        if pretrained is True:
            source = _source(cfg)
        elif not pretrained and cfg.get('num_classes') is not None:
            arguments.setdefault('num_classes', cfg['num_classes'])
        arguments = {key: x for key, x in arguments.items() if key not in IGNORED}
        place = {key: arguments.pop(key, None) for key in ('device', 'dtype')}
        if 'in_chans' in arguments:
            arguments['in_channels'] = arguments.pop('in_chans')
        model = create_model(name, source, **arguments).to(**place)
        if arguments.get('features_only'):
            model.register_forward_hook(_to_list)
        return model

    build.__name__ = build.__qualname__ = new
    build.__module__ = __name__
    build.__doc__ = f'Build {name} of mmsparse.'
    return build


def _to_list(_: nn.Module, __: Any, feature_maps: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the feature maps as timm's models do; some libraries append to them."""
    return list(feature_maps)


def _default_cfg(name: str) -> dict[str, Any]:
    family, arch = split_name(name)
    backbone = BACKBONES[family]
    known = [x for x in entries('classification', name) if x.sha256 and x.urls]
    return dict(
        default_data(backbone.arch_settings[arch], backbone.crop_mode),
        num_classes=CLASSES,
        classifier='head.fc',
        url=known[0].urls[0] if known else None,
    )


def _merged_cfg(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``pretrained_cfg`` that timm passes, with its overlay."""
    cfg = arguments.get('pretrained_cfg') or {}
    if isinstance(cfg, str):  # timm's name.tag
        raise UsageError(f'{name} has no weights with the tag {cfg!r}; leave it out')
    cfg = cfg.to_dict() if hasattr(cfg, 'to_dict') else cfg
    return {**cfg, **(arguments.get('pretrained_cfg_overlay') or {})}


def _source(cfg: Mapping[str, Any]) -> str | bool:
    """Return the file or repository that a ``pretrained_cfg`` names, or True."""
    if cfg.get('file') or cfg.get('url'):
        return cfg.get('file') or cfg['url']
    if cfg.get('hf_hub_id'):
        return f'{HUB}{cfg["hf_hub_id"]}'
    return True
