"""Our counterparts of the official BiFormer's classes, from their arguments."""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn

from mmsparse.models.backbones.biformer import BiFormer
from mmsparse.models.classifier import Classifier
from mmsparse.models.layers import BiLevelRoutingAttention, FullAttention2d
from parity.cases import UnsupportedCaseError

Arguments = Mapping[str, Any]
Attention = tuple[int | str, int, dict[str, Any]]  # topk, num_heads, further arguments

# Nothing of these shows in an evaluation: they drop, recompute, assert or are unused.
WITHOUT_EFFECT = {
    'attn_drop',
    'auto_pad',
    'drop_path',
    'drop_path_rate',
    'drop_rate',
    'kv_downsample_kernel',
    'kv_downsample_kernels',
    'norm_eval',
    'pe_stages',
    'pretrained',
    'proj_drop',
    'use_checkpoint_stages',
}
ROUTINGS = {  # by param_routing, diff_routing, soft_routing
    (False, False, False): 'hard',
    (False, False, True): 'soft',
    (False, True, True): 'differentiable',
    (True, True, True): 'projected',
}
NORMS = {'BatchNorm2d': 'batch', 'LayerNorm2d': 'layer'}
ROUTED = dict(  # what layers, blocks and models of the first form have in common
    qk_scale=None,
    param_attention='qkvo',
    param_routing=False,
    diff_routing=False,
    soft_routing=False,
)
LAYER = dict(
    **ROUTED,
    num_heads=8,
    n_win=7,
    qk_dim=None,
    kv_per_win=4,
    kv_downsample_ratio=4,
    topk=4,
)
BLOCK = dict(
    mlp_dwconv=False,
    before_attn_dwconv=3,
    pre_norm=True,
    layer_scale_init_value=-1,
)


def build(official_class: str, arguments: Arguments) -> nn.Module:
    """Build our counterpart of an official class.

    Args:
        official_class: Its dotted name.
        arguments: What its constructor gets.

    Returns:
        A layer, a block, a backbone or a classifier.

    Raises:
        UnsupportedCaseError: We have no counterpart for the class or its arguments.
    """
    *_, module, name = official_class.split('.')
    if name.endswith('Block'):
        return _build_block(arguments, module)
    if name not in BUILDERS:
        raise UnsupportedCaseError(f'no counterpart of {name}')
    return BUILDERS[name](arguments)


def _read(arguments: Arguments, *required: str, **defaults: Any) -> SimpleNamespace:
    """Fill in the official defaults; refuse what is missing or not known to us."""
    missing = set(required) - set(arguments)
    unknown = set(arguments) - set(required) - set(defaults) - WITHOUT_EFFECT
    if missing or unknown:
        raise UnsupportedCaseError(
            f'arguments missing: {sorted(missing)}, unknown: {sorted(unknown)}'
        )
    return SimpleNamespace(**{**defaults, **arguments})


def _refuse(read: SimpleNamespace, **ours: Any) -> None:
    """Refuse arguments other than what our parts do."""
    for name, value in ours.items():
        if getattr(read, name) != value:
            raise UnsupportedCaseError(f'{name}={getattr(read, name)!r}')


def _choose(name: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    if value not in choices:
        raise UnsupportedCaseError(f'{name}={value!r}')
    return choices[value]


def _build_legacy_layer(arguments: Arguments) -> BiLevelRoutingAttention:
    read = _read(
        arguments, 'dim', **LAYER, kv_downsample_mode='identity', side_dwconv=3
    )
    topk, num_heads, further = _legacy_attention(read)
    return BiLevelRoutingAttention(read.dim, num_heads, topk, read.n_win, **further)


def _build_nchw_layer(arguments: Arguments) -> BiLevelRoutingAttention:
    read = _read(
        arguments,
        'dim',
        num_heads=8,
        n_win=7,
        qk_scale=None,
        topk=4,
        side_dwconv=3,
        attn_backend='torch',
    )
    topk, num_heads, further = _nchw_attention(read)
    return BiLevelRoutingAttention(read.dim, num_heads, topk, read.n_win, **further)


def _build_full_layer(arguments: Arguments, **ours: Any) -> FullAttention2d:
    read = _read(
        arguments, 'dim', num_heads=8, qkv_bias=False, qk_scale=None, side_dwconv=5
    )
    return FullAttention2d(
        read.dim,
        read.num_heads,
        qkv_bias=read.qkv_bias,
        qk_scale=read.qk_scale or None,
        **{'lepe_kernel': read.side_dwconv, **ours},
    )


def _legacy_attention(read: SimpleNamespace) -> Attention:
    """What BiFormer and the legacy STL have in a block, by ``topk``."""
    if read.topk == 0:
        return 0, 1, {}
    if read.topk < 0:
        kernel = _choose('topk', read.topk, {-1: 0, -2: read.side_dwconv})
        return 'all', 8, dict(lepe_kernel=kernel)
    routing = (read.param_routing, read.diff_routing, read.soft_routing)
    further = dict(
        qk_channels=read.qk_dim or None,
        qk_scale=read.qk_scale or None,
        lepe_kernel=read.side_dwconv,
        routing=_choose('param, diff and soft routing', routing, ROUTINGS),
        kv_pool=_kv_pool(read),
        out_proj=_choose(
            'param_attention', read.param_attention, {'qkvo': True, 'qkv': False}
        ),
    )
    return read.topk, read.num_heads, further


def _kv_pool(read: SimpleNamespace) -> tuple[str, int] | None:
    kinds = {
        'identity': None,
        'avgpool': ('avg', read.kv_downsample_ratio),
        'maxpool': ('max', read.kv_downsample_ratio),
        'ada_avgpool': ('adaptive_avg', read.kv_per_win),
        'ada_maxpool': ('adaptive_max', read.kv_per_win),
    }
    return _choose('kv_downsample_mode', read.kv_downsample_mode, kinds)


def _nchw_attention(read: SimpleNamespace) -> Attention:
    """What the nchw STL has in a block, by ``topk``."""
    if read.topk == -1:
        return 'all', 8, dict(lepe_source='values')
    if read.topk < 1:
        raise UnsupportedCaseError(f'topk={read.topk}')
    further = dict(
        padding='tokens',
        qk_scale=read.qk_scale or None,
        lepe_kernel=read.side_dwconv,
    )
    return read.topk, read.num_heads, further


def _build_block(arguments: Arguments, module: str) -> nn.Module:
    stl = module in STL_ATTENTIONS
    read = _read(
        arguments,
        'dim',
        **LAYER,
        **{**BLOCK, 'before_attn_dwconv': 0 if stl else 3},
        mlp_ratio=4,
        side_dwconv=5,
        kv_downsample_mode='identity' if stl else 'ada_avgpool',
    )
    attention = STL_ATTENTIONS.get(module, _legacy_attention)(read)
    arch = _arch([read.dim], [1], [attention], [read.mlp_ratio], read)
    return BiFormer(arch, read.n_win, out_indices=(0,)).stages[0][0]


def _arch(
    widths: Sequence[int],
    depths: Sequence[int],
    attentions: Sequence[Attention],
    mlp_ratios: Sequence[float],
    block: SimpleNamespace,
) -> dict[str, Any]:
    topks, num_heads, attn_cfgs = zip(*attentions, strict=True)
    scale = block.layer_scale_init_value
    return dict(
        embed_dims=widths,
        depths=depths,
        num_heads=num_heads,
        topks=topks,
        mlp_ratios=mlp_ratios,
        attn_cfgs=attn_cfgs,
        pos_kernel=block.before_attn_dwconv,
        mlp_kernel=3 if block.mlp_dwconv else 0,
        layer_scale=scale if scale > 0 else None,
        post_norm=not block.pre_norm,
    )


def _build_legacy_backbone(arguments: Arguments, **settings: Any) -> BiFormer:
    read = _read(
        arguments,
        'depth',
        'embed_dim',
        'qk_dims',
        **ROUTED,
        **BLOCK,
        in_chans=3,
        num_classes=1000,
        head_dim=64,
        n_win=7,
        kv_downsample_mode='ada_avgpool',
        kv_per_wins=(2, 2, -1, -1),
        kv_downsample_ratios=(4, 2, 1, 1),
        topks=(8, 8, -1, -1),
        side_dwconv=5,
        mlp_ratios=(4, 4, 4, 4),
        representation_size=None,
        pe=None,
    )
    _refuse(read, in_chans=3, representation_size=None, pe=None)
    attentions = [
        _legacy_attention(
            SimpleNamespace(
                **vars(read),
                topk=topk,
                num_heads=width // read.head_dim,
                qk_dim=width,
                kv_per_win=side,
                kv_downsample_ratio=ratio,
            )
        )
        for topk, width, side, ratio in zip(
            read.topks,
            read.qk_dims,
            read.kv_per_wins,
            read.kv_downsample_ratios,
            strict=True,
        )
    ]
    arch = _arch(read.embed_dim, read.depth, attentions, read.mlp_ratios, read)
    return BiFormer(arch, read.n_win, **settings)


def _build_stl_backbone(arguments: Arguments, module: str) -> BiFormer:
    read = _read(
        arguments,
        'depth',
        'embed_dim',
        in_chans=3,
        num_classes=1000,
        head_dim=64,
        qk_scale=None,
        norm_layer='LayerNorm2d',
        n_wins=(7, 7, 7, 7),
        topks=(8, 8, -1, -1),
        side_dwconv=5,
        mlp_ratios=(4, 4, 4, 4),
        representation_size=None,
    )
    _refuse(read, in_chans=3, representation_size=None)
    attentions = [
        STL_ATTENTIONS[module](
            SimpleNamespace(
                **{
                    **LAYER,
                    'kv_downsample_mode': 'identity',
                    'qk_scale': read.qk_scale,
                    'topk': topk,
                    'num_heads': width // read.head_dim,
                    'side_dwconv': read.side_dwconv,
                }
            )
        )
        for topk, width in zip(read.topks, read.embed_dim, strict=True)
    ]
    block = SimpleNamespace(**{**BLOCK, 'before_attn_dwconv': 0})
    arch = _arch(read.embed_dim, read.depth, attentions, read.mlp_ratios, block)
    norm_layer = str(read.norm_layer).rpartition('.')[2]
    norm = _choose('norm_layer', norm_layer, NORMS)
    arch.update(downsampling='patches', downsample_norm=norm)
    return BiFormer(arch, read.n_wins, out_norm=norm)


def _with_classifier(build_backbone: Callable[..., BiFormer], *form: str) -> Callable:
    def build_classifier(arguments: Arguments) -> Classifier:
        backbone = build_backbone(arguments, *form)
        num_classes = arguments.get('num_classes', 1000)
        return Classifier(backbone, arguments['embed_dim'][-1], num_classes)

    return build_classifier


def _build_dense(arguments: Arguments) -> BiFormer:
    return _build_legacy_backbone(arguments, out_indices=(0, 1, 2, 3), out_norm='layer')


STL_ATTENTIONS = {
    'biformer_stl': _legacy_attention,
    'biformer_stl_nchw': _nchw_attention,
}
_build_legacy = _with_classifier(_build_legacy_backbone)
_build_stl = _with_classifier(_build_stl_backbone, 'biformer_stl')
_build_stl_nchw = _with_classifier(_build_stl_backbone, 'biformer_stl_nchw')
BUILDERS: dict[str, Callable[[Arguments], nn.Module]] = {
    'BiLevelRoutingAttention': _build_legacy_layer,
    'nchwBRA': _build_nchw_layer,
    'Attention': lambda arguments: _build_full_layer(arguments, lepe_kernel=0),
    'AttentionLePE': _build_full_layer,
    'nchwAttentionLePE': lambda arguments: _build_full_layer(
        arguments, lepe_source='values'
    ),
    'BiFormer': _build_legacy,
    'biformer_tiny': _build_legacy,
    'biformer_small': _build_legacy,
    'biformer_base': _build_legacy,
    'BiFormerSTL': _build_stl,
    'biformer_stl': _build_stl,
    'nchwBiFormerSTL': _build_stl_nchw,
    'biformer_stl_nchw': _build_stl_nchw,
    'BiFormer_mm': _build_dense,
}
