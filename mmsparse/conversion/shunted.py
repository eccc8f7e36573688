"""Key names of the official Shunted Transformer and of mmsparse's."""

from collections.abc import Iterable

Pairs = Iterable[tuple[str, str]]

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
    """Rename a key of the official backbone, such as ``block1.0.attn.kv1.weight``."""
    return _rename(key, _STARTS, _PARTS)


def official_key(key: str) -> str:
    """Return the official key: the inverse of :func:`rename_key`."""
    swapped = ([(new, old) for old, new in pairs] for pairs in (_STARTS, _PARTS))
    return _rename(key, *swapped)


def _rename(key: str, starts: Pairs, parts: Pairs) -> str:
    for old, new in starts:
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in parts:
        key = key.replace(old, new)
    return key
