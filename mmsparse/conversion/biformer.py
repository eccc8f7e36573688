"""Key names and tensors of the official BiFormer and of mmsparse's."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from mmsparse.conversion.layout import rename

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
_TO_OFFICIAL = (
    (r'^downsamples\.', 'downsample_layers.'),
    (r'^out_norms\.layer', 'extra_norms.'),
    (r'^out_norms\.batch\d+\.', 'norm.'),
    (r'\bpos_conv\b', 'pos_embed'),
    (r'\battn\.router\b', 'attn.router.emb'),
    (r'\battn\.([012])\b', lambda found: f'attn.{int(found[1]) + 1}'),
    (r'\blayer_scale([12])\.weight$', r'gamma\1'),
    (r'\bmlp\.fc1\b', 'mlp.0'),
    (r'\bmlp\.dwconv\b', 'mlp.1.dwconv'),
)
_LINEAR = re.compile(r'(^|\.)(qkv|proj|fc1|fc2)\.weight$')


@dataclass(frozen=True)
class Layout:
    """Differences between the key names of the official models."""

    blocks: str = '.'  # between the indices of stage and block
    fc2: str = 'mlp.3'
    qkv: str = 'attn.qkv.qkv'  # of the routed attention
    proj: str = 'attn.wo'


LAYOUTS = {
    'biformer': Layout(),
    'stl': Layout(blocks='.blocks.', fc2='mlp.2'),
    'stl-nchw': Layout(
        blocks='.blocks.',
        fc2='mlp.2',
        qkv='attn.qkv_linear',
        proj='attn.output_linear',
    ),
}


def rename_key(key: str, last_norm: str = 'batch') -> str:
    """Rename a key of an official backbone, block or attention layer of any layout.

    ``last_norm`` is the type of the norm before the classifier, ``batch`` or ``layer``.
    """
    return rename(key, [(r'^norm\.', f'out_norms.{last_norm}3.'), *_RENAMES])


def convert_tensor(key: str, tensor: Tensor) -> Tensor:
    """Return a 1x1 convolution that mmsparse has as a linear layer as (D, C)."""
    return tensor.flatten(1) if _LINEAR.search(key) else tensor


def official_key(
    key: str, layout: str = 'biformer', routed_stages: Collection[int] = (0, 1, 2)
) -> str:
    """Return the official key in a layout: the inverse of :func:`rename_key`.

    ``routed_stages`` are those with routed attention, counted from 0.
    """
    names = LAYOUTS[layout]
    found = re.match(r'stages\.(\d+)\.', key)
    routed = found is not None and int(found[1]) in routed_stages
    attention = ((r'attn\.qkv\b', names.qkv), (r'attn\.proj\b', names.proj))
    return rename(
        key,
        (
            *(attention if routed else ()),
            *_TO_OFFICIAL,
            (r'\bmlp\.fc2\b', names.fc2),
            (r'^stages\.(\d+)\.', rf'stages.\1{names.blocks}'),
        ),
    )
