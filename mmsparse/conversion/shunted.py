"""Key names of the official Shunted Transformer and of mmsparse's."""

from collections.abc import Iterable

_STARTS = (
    # The first match counts: norms of stages come before blocks.
    *((f'norm{i + 1}.', f'stages.{i}.norm.') for i in range(4)),
    *((f'block{i + 1}.', f'stages.{i}.') for i in range(4)),
    *((f'patch_embed{i + 1}.', f'downsamples.{i}.') for i in range(4)),
)
_PARTS = (
    *(
        (f'.attn.{official}{i}.', f'.attn.{group}.{name}.')
        for i, group in ((1, 'coarse'), (2, 'fine'))
        for official, name in (
            ('sr', 'reduce'),
            ('norm', 'norm'),
            ('kv', 'kv'),
            ('local_conv', 'lepe'),
        )
    ),
    ('.attn.local_conv.', '.attn.lepe.'),
    ('.mlp.dwconv.dwconv.', '.mlp.dwconv.'),
)


def rename_key(key: str) -> str:
    """Rename a key of the official backbone.

    Args:
        key: Key in the official state dict, for example ``block1.0.attn.kv1.weight``.

    Returns:
        Key in the state dict of mmsparse's backbone.
    """
    return _rename(key, _STARTS, _PARTS)


def official_key(key: str) -> str:
    """Return the official key: the inverse of :func:`rename_key`.

    Args:
        key: Key in the state dict of mmsparse's backbone, for example
            ``stages.0.0.attn.coarse.kv.weight``.

    Returns:
        Key in the official state dict.
    """
    return _rename(key, _swapped(_STARTS), _swapped(_PARTS))


def _rename(
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
