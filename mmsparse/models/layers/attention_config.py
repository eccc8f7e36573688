"""Attention layers by config: any registered layer, (B, C, H, W) to (B, C, H, W)."""

from collections.abc import Mapping
from difflib import get_close_matches
from inspect import signature
from typing import Any

from torch import nn

from mmsparse.registry import MODELS

# Arguments that count tokens along a side of the feature map, which must have as many.
EXTENTS = ('window_size', 'kernel_size', 'stripe_width', 'sr_ratio')
EXTENTS += ('pool_size', 'regions_per_side')


def build_attention(
    cfg: Mapping[str, Any], in_channels: int, num_heads: int, map_size: int
) -> nn.Module:
    """Build the attention layer of a stage.

    Args:
        cfg: ``type``, a registered layer with the argument ``in_channels`` or its
            class, and its other arguments.
        in_channels: C of the feature map.
        num_heads: ``num_heads`` of a layer that has it, unless in ``cfg``.
        map_size: Height and width of the feature map; ``map_size`` of a layer that has
            it, unless in ``cfg``.

    Returns:
        The layer.

    Raises:
        ValueError: The type or an argument is unknown, an argument is missing, or a
            window is larger than the feature map.
    """
    arguments = dict(cfg)
    layer = _find_layer(arguments.pop('type', None))
    if 'in_channels' in arguments:
        raise ValueError(
            "attention must leave in_channels to the arch's embed_dims; got "
            f'in_channels={arguments["in_channels"]} of {layer.__name__}.'
        )
    given = dict(num_heads=num_heads, map_size=map_size)
    given = {k: x for k, x in given.items() if k in signature(layer).parameters}
    arguments = {**given, **arguments, 'in_channels': in_channels}
    _check_extents(_with_defaults(layer, arguments), map_size)
    return layer(**arguments)


def _find_layer(name: Any) -> type[nn.Module]:
    layer = MODELS.get(name) if isinstance(name, str) else name
    if isinstance(layer, type) and issubclass(layer, nn.Module):
        return layer
    layers = [x for x in MODELS.module_dict if 'Attention' in x]
    close = get_close_matches(str(name).rpartition('.')[2], layers)
    meant = ' or '.join(f"'mmsparse.{x}'" for x in close or sorted(layers))
    raise ValueError(
        f'attention must have a registered layer as its type; got {name!r}. Did you '
        f'mean {meant}?'
    )


def _with_defaults(
    layer: type[nn.Module], arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return all arguments of a layer; raise ValueError if it does not take them."""
    known = signature(layer)
    try:
        bound = known.bind(**arguments)
    except TypeError as error:
        names = ', '.join(known.parameters)
        raise ValueError(
            f'attention {layer.__name__}: {error}; its arguments are {names}.'
        ) from error
    bound.apply_defaults()
    return bound.arguments


def _check_extents(arguments: Mapping[str, Any], map_size: int) -> None:
    dilation = arguments.get('dilation', 1)  # of windows and neighborhoods
    for name in EXTENTS:
        extent = arguments.get(name)
        if isinstance(extent, int) and extent * dilation > map_size:
            times = f' times dilation={dilation}' if dilation != 1 else ''
            raise ValueError(
                f'{name}{times} must be at most {map_size}, the height and width of '
                f"the feature map at the arch's img_size; got {extent}."
            )
