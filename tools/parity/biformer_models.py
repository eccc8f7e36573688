"""Build the counterparts of the official BiFormer's classes from their arguments."""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from mmsparse.models.backbones.biformer import BiFormer
from mmsparse.models.classifier import Classifier
from mmsparse.models.layers import BiLevelRoutingAttention, FullAttention2d
from parity.cases import UnsupportedCaseError
from parity.models import Arguments, choose

Attention = tuple[int | str, int, dict[str, Any]]  # topk, num_heads, other arguments

NO_EFFECT = {  # on outputs in evaluation mode
    *('attn_drop', 'auto_pad', 'drop_path', 'drop_path_rate', 'drop_rate'),
    *('kv_downsample_kernel', 'kv_downsample_kernels', 'norm_eval', 'pe_stages'),
    *('pretrained', 'proj_drop', 'use_checkpoint_stages'),
}
ROUTINGS = {  # by param_routing, diff_routing, soft_routing
    (False, False, False): 'hard',
    (False, False, True): 'soft',
    (False, True, True): 'differentiable',
    (True, True, True): 'projected',
}
NORMS = {'BatchNorm2d': 'batch', 'LayerNorm2d': 'layer'}
# Official defaults.
ROUTED = dict(  # of layers, blocks and models of the legacy code
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
MODEL = dict(
    in_chans=3,
    num_classes=1000,
    head_dim=64,
    topks=(8, 8, -1, -1),
    side_dwconv=5,
    mlp_ratios=(4, 4, 4, 4),
    representation_size=None,
)


def build(official_class: str, arguments: Arguments) -> nn.Module:
    """Build the counterpart of an official class, given by its dotted name."""
    *_, module, name = official_class.split('.')
    if name.endswith('Block'):
        return _build_block(arguments, module)
    if name not in BUILDERS:
        raise UnsupportedCaseError(f'no counterpart of {name}')
    return BUILDERS[name](arguments)


def _read(arguments: Arguments, *required: str, **defaults: Any) -> SimpleNamespace:
    """Fill in official defaults; raise for missing and unknown arguments."""
    missing = set(required) - set(arguments)
    unknown = set(arguments) - set(required) - set(defaults) - NO_EFFECT
    if missing or unknown:
        raise UnsupportedCaseError(
            f'arguments missing: {sorted(missing)}, unknown: {sorted(unknown)}'
        )
    return SimpleNamespace(**{**defaults, **arguments})


def _require(read: SimpleNamespace, **supported: Any) -> None:
    """Raise for other values than the supported ones."""
    for name, value in supported.items():
        choose(name, getattr(read, name), {value: value})


def _build_legacy_layer(arguments: Arguments) -> BiLevelRoutingAttention:
    read = _read(
        arguments, 'dim', **LAYER, kv_downsample_mode='identity', side_dwconv=3
    )
    topk, num_heads, options = _legacy_attention(read)
    return BiLevelRoutingAttention(read.dim, num_heads, topk, read.n_win, **options)


def _build_nchw_layer(arguments: Arguments) -> BiLevelRoutingAttention:
    defaults = dict(num_heads=8, n_win=7, qk_scale=None, topk=4, side_dwconv=3)
    read = _read(arguments, 'dim', **defaults, attn_backend='torch')
    topk, num_heads, options = _nchw_attention(read)
    return BiLevelRoutingAttention(read.dim, num_heads, topk, read.n_win, **options)


def _build_full_layer(arguments: Arguments, **options: Any) -> FullAttention2d:
    read = _read(
        arguments, 'dim', num_heads=8, qkv_bias=False, qk_scale=None, side_dwconv=5
    )
    return FullAttention2d(
        read.dim,
        read.num_heads,
        qkv_bias=read.qkv_bias,
        qk_scale=read.qk_scale or None,
        **{'lepe_kernel': read.side_dwconv, **options},
    )


def _legacy_attention(read: SimpleNamespace) -> Attention:
    """The attention of BiFormer and of the legacy STL, chosen by ``topk``."""
    if read.topk == 0:
        return 0, 1, {}
    if read.topk < 0:
        kernel = choose('topk', read.topk, {-1: 0, -2: read.side_dwconv})
        return 'all', 8, dict(lepe_kernel=kernel)
    routing = (read.param_routing, read.diff_routing, read.soft_routing)
    pools = {
        'identity': None,
        'avgpool': ('avg', read.kv_downsample_ratio),
        'maxpool': ('max', read.kv_downsample_ratio),
        'ada_avgpool': ('adaptive_avg', read.kv_per_win),
        'ada_maxpool': ('adaptive_max', read.kv_per_win),
    }
    options = dict(
        qk_channels=read.qk_dim or None,
        qk_scale=read.qk_scale or None,
        lepe_kernel=read.side_dwconv,
        routing=choose('param, diff and soft routing', routing, ROUTINGS),
        kv_pool=choose('kv_downsample_mode', read.kv_downsample_mode, pools),
        out_proj=choose(
            'param_attention', read.param_attention, {'qkvo': True, 'qkv': False}
        ),
    )
    return read.topk, read.num_heads, options


def _nchw_attention(read: SimpleNamespace) -> Attention:
    """The attention of the STL of the refactored code, chosen by ``topk``."""
    if read.topk == -1:
        return 'all', 8, dict(lepe_source='values')
    if read.topk < 1:
        raise UnsupportedCaseError(f'topk={read.topk}')
    options = dict(
        padding='tokens',
        qk_scale=read.qk_scale or None,
        lepe_kernel=read.side_dwconv,
    )
    return read.topk, read.num_heads, options


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
    block_types = tuple(
        {'all': 'full', 0: 'conv'}.get(topk, 'routing') for topk in topks
    )
    scale = block.layer_scale_init_value
    return dict(
        embed_dims=widths,
        depths=depths,
        num_heads=num_heads,
        block_types=block_types,
        topks=tuple(None if topk in ('all', 0) else topk for topk in topks),
        mlp_ratios=mlp_ratios,
        attn_cfgs=attn_cfgs,
        pos_kernels=block.before_attn_dwconv,
        mlp_kernels=3 if block.mlp_dwconv else 0,
        layer_scales=scale if scale > 0 else None,
        post_norm=not block.pre_norm,
    )


def _build_legacy_backbone(arguments: Arguments, **settings: Any) -> BiFormer:
    defaults = dict(
        n_win=7,
        kv_downsample_mode='ada_avgpool',
        kv_per_wins=(2, 2, -1, -1),
        kv_downsample_ratios=(4, 2, 1, 1),
        pe=None,
    )
    required = ('depth', 'embed_dim', 'qk_dims')
    read = _read(arguments, *required, **ROUTED, **BLOCK, **MODEL, **defaults)
    _require(read, in_chans=3, representation_size=None, pe=None)
    stages = zip(
        read.topks,
        read.qk_dims,
        read.kv_per_wins,
        read.kv_downsample_ratios,
        strict=True,
    )
    names = ('topk', 'qk_dim', 'kv_per_win', 'kv_downsample_ratio')
    attentions = []
    for values in stages:
        stage = dict(vars(read), **dict(zip(names, values, strict=True)))
        stage['num_heads'] = stage['qk_dim'] // read.head_dim
        attentions.append(_legacy_attention(SimpleNamespace(**stage)))
    arch = _arch(read.embed_dim, read.depth, attentions, read.mlp_ratios, read)
    return BiFormer(arch, read.n_win, **settings)


def _build_stl_backbone(arguments: Arguments, module: str) -> BiFormer:
    defaults = dict(qk_scale=None, norm_layer='LayerNorm2d', n_wins=(7, 7, 7, 7))
    read = _read(arguments, 'depth', 'embed_dim', **MODEL, **defaults)
    _require(read, in_chans=3, representation_size=None)
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
    norm = choose('norm_layer', str(read.norm_layer).rpartition('.')[2], NORMS)
    arch.update(downsampling='patches', downsample_norm=norm)
    return BiFormer(arch, read.n_wins, out_norm=norm)


def _classifier(
    build_backbone: Callable[..., BiFormer], arguments: Arguments
) -> Classifier:
    backbone = build_backbone(arguments)
    num_classes = arguments.get('num_classes', 1000)
    return Classifier(backbone, num_classes)


STL_ATTENTIONS = {
    'biformer_stl': _legacy_attention,
    'biformer_stl_nchw': _nchw_attention,
}
_legacy = partial(_classifier, _build_legacy_backbone)
_stl, _stl_nchw = (
    partial(_classifier, partial(_build_stl_backbone, module=module))
    for module in STL_ATTENTIONS
)
BUILDERS: dict[str, Callable[[Arguments], nn.Module]] = {
    'BiLevelRoutingAttention': _build_legacy_layer,
    'nchwBRA': _build_nchw_layer,
    'Attention': partial(_build_full_layer, lepe_kernel=0),
    'AttentionLePE': _build_full_layer,
    'nchwAttentionLePE': partial(_build_full_layer, lepe_source='values'),
    'BiFormer': _legacy,
    'biformer_tiny': _legacy,
    'biformer_small': _legacy,
    'biformer_base': _legacy,
    'BiFormerSTL': _stl,
    'biformer_stl': _stl,
    'nchwBiFormerSTL': _stl_nchw,
    'biformer_stl_nchw': _stl_nchw,
    'BiFormer_mm': partial(
        _build_legacy_backbone, out_indices=(0, 1, 2, 3), out_norm='layer'
    ),
}
