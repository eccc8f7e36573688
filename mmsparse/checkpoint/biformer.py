"""The official BiFormer's key names and ours."""

import re

_RENAMES = (
    (r'^downsample_layers\.', 'downsamples.'),
    (r'^extra_norms\.', 'out_norms.layer'),
    (r'^norm\.', 'out_norms.batch3.'),
    (r'\bpos_embed\b', 'pos_conv'),
    (r'\bqkv\.qkv\b', 'qkv'),
    (r'\bwo\b', 'proj'),
    (r'\blepe\b', 'local'),
    (r'\bmlp\.0\b', 'mlp.fc1'),
    (r'\bmlp\.3\b', 'mlp.fc2'),
    # Convolutions in place of attention: a layout change stands before them.
    (r'\battn\.([123])\b', lambda found: f'attn.{int(found[1]) - 1}'),
)


def rename_key(key: str) -> str:
    """Translate a key of the official backbone, a block or an attention layer.

    Args:
        key: Name in the official state dict, for example
            ``stages.0.1.attn.qkv.qkv.weight``.

    Returns:
        Name in the state dict of our backbone, block or layer.
    """
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
