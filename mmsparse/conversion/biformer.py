"""Key names and tensors of the official BiFormer and of mmsparse's."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

# Patterns of official names of all layouts, and mmsparse's names.
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
    # Convolutions in place of attention, after a permutation at index 0.
    (r'\battn\.([123])\b', lambda found: f'attn.{int(found[1]) - 1}'),
)
_LINEAR = re.compile(r'(^|\.)(qkv|proj|fc1|fc2)\.weight$')


@dataclass(frozen=True)
class Layout:
    """Differences between the key names of the official models.

    Args:
        blocks: Separator of the indices of stage and block.
        fc2: Name of the second linear layer of the MLP.
        qkv: Name of the input projection of the routed attention.
        proj: Name of its output projection.
        convolutions: Whether linear layers are stored as 1x1 convolutions.
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
    """Rename a key of an official backbone, block or attention layer.

    Args:
        key: Key in the official state dict of any layout, for example
            ``stages.0.1.attn.qkv.qkv.weight``.
        last_norm: Type of the norm before the classifier, ``batch`` or ``layer``.

    Returns:
        Key in the state dict of mmsparse's backbone, block or layer.
    """
    key = re.sub(r'^norm\.', f'out_norms.{last_norm}3.', key)
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def convert_tensor(key: str, tensor: Tensor) -> Tensor:
    """Convert an official tensor.

    Args:
        key: Key in mmsparse's state dict.
        tensor: Official tensor.

    Returns:
        The tensor; weights of 1x1 convolutions, (D, C, 1, 1), as those of linear
        layers, (D, C).
    """
    if _LINEAR.search(key) and tensor.ndim == 4:
        return tensor.flatten(1)
    return tensor


def official_key(
    key: str, layout: str = 'biformer', routed_stages: Collection[int] = (0, 1, 2)
) -> str:
    """Return the official key: the inverse of :func:`rename_key`.

    Args:
        key: Key in the state dict of mmsparse's backbone.
        layout: Layout of the official model, one of ``LAYOUTS``.
        routed_stages: Stages with routed attention, counted from 0.

    Returns:
        Key in the official state dict.
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
    """Return the official name of the part of a key after the index of the block."""
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
    """Return the official tensor: the inverse of :func:`convert_tensor`.

    Args:
        key: Key in mmsparse's state dict.
        tensor: Tensor in mmsparse's state dict.
        layout: Layout of the official model, one of ``LAYOUTS``.

    Returns:
        The tensor; linear layers as 1x1 convolutions where the layout stores those.
    """
    if LAYOUTS[layout].convolutions and _LINEAR.search(key):
        return tensor[..., None, None]
    return tensor
