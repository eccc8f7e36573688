"""The official BiFormer's key names and tensors, and ours."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

# Patterns of the official names and ours; where layouts differ, for all of them.
_RENAMES = (
    (r'^downsample_layers\.', 'downsamples.'),
    (r'^extra_norms\.', 'out_norms.layer'),
    (r'\bblocks\.', ''),
    (r'\bpos_embed\b', 'pos_conv'),
    (r'\bqkv\.qkv\b|\bqkv_linear\b', 'qkv'),
    (r'\bwo\b|\boutput_linear\b', 'proj'),
    (r'\brouter\.emb\b', 'router'),
    (r'\bgamma([12])$', r'layer_scale\1.weight'),
    (r'\bmlp\.0\b', 'mlp.fc1'),
    (r'\bmlp\.1\.dwconv\b', 'mlp.dwconv'),
    (r'\bmlp\.[23]\b', 'mlp.fc2'),
    # Convolutions in place of attention: a layout change stands before them.
    (r'\battn\.([123])\b', lambda found: f'attn.{int(found[1]) - 1}'),
)
_LINEAR_MAP = re.compile(r'(^|\.)(qkv|proj|fc1|fc2)\.weight$')


@dataclass(frozen=True)
class Layout:
    """What differs between the key names of the official models.

    Args:
        blocks: What stands between the numbers of a stage and of a block.
        fc2: Name of the second linear map of the MLP.
        qkv: Name of the first linear map of the routed attention.
        proj: Name of its second.
        convolutions: Whether linear maps are stored as 1x1 convolutions.
    """

    blocks: str = '.'
    fc2: str = 'mlp.3'
    qkv: str = 'attn.qkv.qkv'
    proj: str = 'attn.wo'
    convolutions: bool = False


LAYOUTS = {
    'biformer': Layout(),
    'stl': Layout(blocks='.blocks.', fc2='mlp.2'),
    'stl-nchw': Layout(
        blocks='.blocks.',
        fc2='mlp.2',
        qkv='attn.qkv_linear',
        proj='attn.output_linear',
        convolutions=True,
    ),
}


def rename_key(key: str, last_norm: str = 'batch') -> str:
    """Translate a key of an official backbone, a block or an attention layer.

    Args:
        key: Name in the official state dict of any layout, for example
            ``stages.0.1.attn.qkv.qkv.weight``.
        last_norm: Kind of the norm before the classifier, ``batch`` or ``layer``.

    Returns:
        Name in the state dict of our backbone, block or layer.
    """
    key = re.sub(r'^norm\.', f'out_norms.{last_norm}3.', key)
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def convert_tensor(key: str, tensor: Tensor) -> Tensor:
    """Bring an official tensor into our shape.

    Args:
        key: Our key of it.
        tensor: The official tensor.

    Returns:
        The tensor; linear maps that were 1x1 convolutions, (D, C, 1, 1), as (D, C).
    """
    if _LINEAR_MAP.search(key) and tensor.ndim == 4:
        return tensor.flatten(1)
    return tensor


def official_key(
    key: str, layout: str = 'biformer', routed_stages: Collection[int] = (0, 1, 2)
) -> str:
    """Translate a key of our backbone; the inverse of :func:`rename_key`.

    Args:
        key: Name in the state dict of our backbone.
        layout: Layout of the official model, one of ``LAYOUTS``.
        routed_stages: Stages whose attention is routed, counted from 0.

    Returns:
        Name in the official state dict.
    """
    names = LAYOUTS[layout]
    key = re.sub(r'^downsamples\.', 'downsample_layers.', key)
    key = re.sub(r'^out_norms\.layer', 'extra_norms.', key)
    key = re.sub(r'^out_norms\.batch\d+\.', 'norm.', key)
    found = re.match(r'stages\.(\d+)\.(\d+)\.(.+)', key)
    if found is None:
        return key
    stage, block, part = found.groups()
    part = _official_part(part, names, routed=int(stage) in routed_stages)
    return f'stages.{stage}{names.blocks}{block}.{part}'


def _official_part(part: str, names: Layout, routed: bool) -> str:
    """Translate the part of a key that follows the number of a block."""
    if routed:
        part = part.replace('attn.qkv', names.qkv).replace('attn.proj', names.proj)
    for pattern, replacement in (
        (r'^pos_conv\b', 'pos_embed'),
        (r'^attn\.router\b', 'attn.router.emb'),
        (r'^attn\.([012])\b', lambda found: f'attn.{int(found[1]) + 1}'),
        (r'^layer_scale([12])\.weight$', r'gamma\1'),
        (r'^mlp\.fc1\b', 'mlp.0'),
        (r'^mlp\.dwconv\b', 'mlp.1.dwconv'),
        (r'^mlp\.fc2\b', names.fc2),
    ):
        part = re.sub(pattern, replacement, part)
    return part


def official_tensor(key: str, tensor: Tensor, layout: str = 'biformer') -> Tensor:
    """Bring a tensor of ours into the official shape; inverse of `convert_tensor`.

    Args:
        key: Our key of it.
        tensor: Our tensor.
        layout: Layout of the official model, one of ``LAYOUTS``.

    Returns:
        The tensor; linear maps as 1x1 convolutions where the layout has them so.
    """
    if LAYOUTS[layout].convolutions and _LINEAR_MAP.search(key):
        return tensor[..., None, None]
    return tensor
