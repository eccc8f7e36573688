"""The official Shunted Transformer's key names and ours."""

from collections.abc import Iterable

_STARTS = (
    # A stage's norm stands before its blocks here: the first start that fits counts.
    *((f'norm{i + 1}.', f'stages.{i}.norm.') for i in range(4)),
    *((f'block{i + 1}.', f'stages.{i}.') for i in range(4)),
    *((f'patch_embed{i + 1}.', f'downsamples.{i}.') for i in range(4)),
)
_PARTS = (
    *(
        (f'.attn.{official}{i}.', f'.attn.{group}.{ours}.')
        for i, group in ((1, 'coarse'), (2, 'fine'))
        for official, ours in (
            ('sr', 'reduce'),
            ('norm', 'norm'),
            ('kv', 'kv'),
            ('local_conv', 'lepe'),
        )
    ),
    ('.attn.local_conv.', '.attn.lepe.'),
    ('.mlp.dwconv.dwconv.', '.mlp.dwconv.'),
)


def rename_key(official: str) -> str:
    """Translate a key of the official backbone.

    Args:
        official: Name in the official state dict, for example
            ``block1.0.attn.kv1.weight``.

    Returns:
        Name in the state dict of our backbone; what both share stays as it is.
    """
    return _translate(official, _STARTS, _PARTS)


def official_key(ours: str) -> str:
    """Translate a key of our backbone; the inverse of :func:`rename_key`.

    Args:
        ours: Name in the state dict of our backbone, for example
            ``stages.0.0.attn.coarse.kv.weight``.

    Returns:
        Name in the official state dict.
    """
    return _translate(ours, _swapped(_STARTS), _swapped(_PARTS))


def _translate(
    key: str,
    starts: Iterable[tuple[str, str]],
    parts: Iterable[tuple[str, str]],
) -> str:
    for old, new in starts:
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in parts:
        key = key.replace(old, new)
    return key


def _swapped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(new, old) for old, new in pairs]
