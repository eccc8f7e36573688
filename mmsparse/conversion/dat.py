"""Key names of the official DAT and of mmsparse's."""

import re

from torch import Tensor

from mmsparse.conversion.layout import Rename, rename


def _from_list(found: re.Match) -> str:
    """Return the prefix in a block, for a list with two entries per block."""
    stage, name, entry = found[1], found[2], int(found[3])
    return f'stages.{stage}.{entry // 2}.layer_{name}{entry % 2 + 1}.'


def _to_list(found: re.Match) -> str:
    """Invert :func:`_from_list`."""
    stage, block, name, number = found.groups()
    return f'stages.{stage}.layer_{name}s.{2 * int(block) + int(number) - 1}.'


_FROM_OFFICIAL: tuple[Rename, ...] = (
    (r'^patch_proj\.', 'downsamples.0.'),
    (r'^stages\.0\.proj\.', 'downsamples.0.proj.'),
    (r'^down_projs\.(\d)\.', lambda found: f'downsamples.{int(found[1]) + 1}.'),
    (r'^(downsamples\.\d\.\d)\.norm\.', r'\1.'),
    (r'^stages\.(\d)\.layer_(norm|scale)s\.(\d+)\.', _from_list),
    (r'\blayer_(norm[12])\.norm\.', r'\1.'),
    (r'\b(layer_scale[12])\.gamma$', r'\1.weight'),
    (r'^stages\.(\d)\.local_perception_units\.(\d+)\.', r'stages.\1.\2.pos_conv.'),
    (r'^stages\.(\d)\.attns\.(\d+)\.', r'stages.\1.\2.attn.'),
    (r'^stages\.(\d)\.mlps\.(\d+)\.', r'stages.\1.\2.mlp.'),
    (r'\b(chunk\.)?linear([12])\.(0\.)?(?=weight|bias)', r'fc\2.'),
    (r'\bdwc\.', 'dwconv.'),
    (r'\bproj_(q|k|v|qkv)\.', r'\1.'),
    (r'\bproj_out\.', 'proj.'),
    (r'\bconv_offset\.1\.norm\.', 'conv_offset.1.'),
    (r'\brpe_table\.(?=\d)', 'cpb_mlp.'),
    (r'\brpe_table\.(?=weight|bias)', 'lepe.'),
    (r'\b(rpe_table|rpb)$', 'relative_position_bias_table'),
    (r'^cls_norm\.norm\.', 'out_norms.class3.'),
    (r'^norms\.(\d)\.norm\.', r'out_norms.layer\1.'),
    (r'^cls_head\.', 'head.fc.'),
)
_TO_OFFICIAL: tuple[Rename, ...] = (
    (r'^downsamples\.0\.proj\.', 'stages.0.proj.'),
    (r'^downsamples\.0\.([14])\.', r'patch_proj.\1.norm.'),
    (r'^downsamples\.0\.', 'patch_proj.'),
    (r'^downsamples\.(\d)\.1\.', r'downsamples.\1.1.norm.'),
    (r'^downsamples\.(\d)\.', lambda found: f'down_projs.{int(found[1]) - 1}.'),
    (r'^(stages\.\d\.\d+)\.(norm[12])\.', r'\1.layer_\2.norm.'),
    (r'^stages\.(\d)\.(\d+)\.layer_(norm|scale)([12])\.', _to_list),
    (r'^stages\.(\d)\.(\d+)\.pos_conv\.', r'stages.\1.local_perception_units.\2.'),
    (r'^stages\.(\d)\.(\d+)\.attn\.', r'stages.\1.attns.\2.'),
    (r'^stages\.(\d)\.(\d+)\.mlp\.', r'stages.\1.mlps.\2.'),
    (r'\bdwconv\.', 'dwc.'),
    (r'^out_norms\.class3\.', 'cls_norm.norm.'),
    (r'^out_norms\.layer(\d)\.', r'norms.\1.norm.'),
    (r'^head\.fc\.', 'cls_head.'),
)
# Official names that depend on the block type: DAT's letters.
_WINDOW: tuple[Rename, ...] = (
    (r'\bqkv\.', 'proj_qkv.'),
    (r'\bproj\.(?=weight|bias)', 'proj_out.'),
)
_ATTENTION: dict[str, tuple[Rename, ...]] = {
    'L': _WINDOW,
    'S': _WINDOW,
    'N': ((r'\brelative_position_bias_table$', 'rpb'),),
    'D': (
        (r'\b([qkv])\.(?=weight|bias)', r'proj_\1.'),
        (r'\bproj\.(?=weight|bias)', 'proj_out.'),
        (r'\bconv_offset\.1\.', 'conv_offset.1.norm.'),
        (r'\b(relative_position_bias_table$|cpb_mlp(?=\.)|lepe(?=\.))', 'rpe_table'),
    ),
    'M': (),
}
_COMPUTED = ('relative_position_index', 'attn_mask')


def rename_key(key: str) -> str | None:
    """Rename a key of an official backbone, classifier or attention layer.

    Returns None for a buffer that mmsparse computes.
    """
    return None if key.endswith(_COMPUTED) else rename(key, _FROM_OFFICIAL)


def official_key(key: str, block_type: str = 'D', conv_mlp: bool = True) -> str:
    """Return the official key: the inverse of :func:`rename_key`.

    ``block_type``, one of ``LSNDM``, is that of the block; ``conv_mlp`` is whether its
    MLP has a depthwise convolution. Layer scales are named as in 2023's classifiers.
    """
    if '.attns.' in (key := rename(key, _TO_OFFICIAL)):
        return rename(key, _ATTENTION[block_type])
    linear = r'linear\2.0.' if conv_mlp else r'chunk.linear\2.'
    return re.sub(r'\bmlps\.(\d+)\.fc([12])\.', rf'mlps.\1.{linear}', key)


def convert_tensor(key: str, tensor: Tensor) -> Tensor:
    """Return a 1x1 convolution that mmsparse has as a linear layer as (D, C)."""
    is_linear = re.search(r'\b(proj_(q|k|v|out)|linear[12](\.0)?)\.weight$', key)
    return tensor.flatten(1) if is_linear else tensor
