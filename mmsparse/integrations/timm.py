"""Models of mmsparse in timm, as ``mmsparse_<family>_<arch>``."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mmsparse.factory import create_model, list_models
from mmsparse.factory.data_config import CLASSES, default_data
from mmsparse.factory.names import split_name
from mmsparse.models.backbones import BACKBONES
from mmsparse.weights import entries

# Arguments of timm's functions that are not for the model.
IGNORED = (
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'pretrained_model_args',
    'cache_dir',
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
    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        overlay = arguments.get('pretrained_cfg_overlay') or {}
        cfg = arguments.get('pretrained_cfg')
        source = pretrained and _source(cfg, overlay)
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


def _source(cfg: Any, overlay: dict[str, Any]) -> str | bool:
    """Return the file or repository that a ``pretrained_cfg`` names, or True."""
    values = {**(cfg.to_dict() if hasattr(cfg, 'to_dict') else cfg or {}), **overlay}
    if values.get('file') or values.get('url'):
        return values.get('file') or values['url']
    if values.get('hf_hub_id'):
        return f'hf-hub:{values["hf_hub_id"]}'
    return True
