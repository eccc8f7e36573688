"""Random architectures: valid ones, and ones with a fault of a known name."""

import random
from typing import Any, NamedTuple

from mmsparse.models import DAT, BiFormer, ShuntedTransformer


class Drawn(NamedTuple):
    """A backbone, and what to build it with."""

    backbone: type
    arguments: dict[str, Any]


def draw(rng: random.Random) -> Drawn:
    """A small backbone of any family; settings are left out as often as not."""
    family = rng.choice([_dat, _biformer, _shunted])
    stages = rng.randint(1, 4)
    backbone, arch, arguments = family(rng, stages)
    optional = [name for name in arch if name in _OPTIONAL]
    for name in rng.sample(optional, rng.randint(0, len(optional))):
        del arch[name]
    last = rng.randint(1, stages)
    arguments |= dict(
        arch=arch,
        out_indices=sorted(rng.sample(range(stages), last)),
        drop_path_rate=rng.choice([0, 0.0, 0.3]),
        frozen_stages=rng.randint(-1, stages - 1),
        norm_eval=rng.random() < 0.3,
        with_cp=rng.random() < 0.3,
    )
    return Drawn(backbone, arguments)


def spoil(rng: random.Random, drawn: Drawn) -> tuple[dict[str, Any], str]:
    """The arguments with one fault, and the name of what is at fault."""
    arguments = drawn.arguments | dict(arch=dict(drawn.arguments['arch']))
    arch = arguments['arch']
    kind = rng.choice(['missing', 'unknown', 'length', 'value', 'value', 'argument'])
    if kind == 'argument':
        name = rng.choice(['out_indices', 'drop_path_rate', 'frozen_stages', 'arch'])
        arguments[name] = rng.choice(_BAD_ARGUMENTS[name])
        return arguments, name
    if kind == 'missing':
        name = rng.choice([name for name in arch if name not in _OPTIONAL])
        del arch[name]
    elif kind == 'unknown':
        name = rng.choice(['depth', 'embed_dim', 'heads', 'patch_size'])
        arch[name] = 1
    elif kind == 'length':
        name = rng.choice([name for name, x in arch.items() if isinstance(x, tuple)])
        arch[name] = rng.choice([(), arch[name] * 2])
    else:
        name = rng.choice([name for name in arch if name in _BAD])
        bad = rng.choice(_BAD[name])
        if isinstance(arch[name], tuple):
            place = rng.randrange(len(arch[name]))
            bad = (*arch[name][:place], bad, *arch[name][place + 1 :])
        arch[name] = bad
    return arguments, name


def _common(rng: random.Random, stages: int) -> dict[str, Any]:
    heads = tuple(rng.choice([2, 4]) for _ in range(stages))
    return dict(
        embed_dims=tuple(rng.choice([4, 8, 12]) * (h // 2) for h in heads),
        depths=tuple(rng.randint(1, 2) for _ in range(stages)),
        num_heads=tuple(h // 2 for h in heads),
    )


def _each(rng: random.Random, stages: int, *choices: Any) -> tuple:
    return tuple(rng.choice(choices) for _ in range(stages))


def _dat(rng: random.Random, stages: int) -> tuple[type, dict, dict]:
    arch = _common(rng, stages) | dict(
        kinds=tuple(
            ''.join(rng.choices('LSNDM', k=rng.randint(1, 2))) for _ in range(stages)
        ),
        formulation=rng.choice(['v2022', 'v2023']),
        strides=_each(rng, stages, 1, 2, 4),
        offset_kernel=_each(rng, stages, 1, 3, 4, 5),
        offset_range=_each(rng, stages, -1, 0, 2, 1.5),
        bias=_each(rng, stages, 'table', 'log_cpb', 'depthwise', 'none', 'fixed'),
        use_offsets=_each(rng, stages, True, True, False),
        window_size=_each(rng, stages, 1, 3, 4, 7),
        neighborhood=_each(rng, stages, 1, 3, 7),
        num_points=_each(rng, stages, 1, 4),
        mlp_ratio=_each(rng, stages, 1, 2, 1.5),
        conv_mlp=_each(rng, stages, True, False),
        local_perception=_each(rng, stages, True, False),
        layer_scale=_each(rng, stages, 0, 1e-6),
        img_size=rng.choice([128, 160, 224]),
        conv_stem=rng.random() < 0.5,
        stem_dims=rng.choice([None, 4, 6]),
        downsample_norm=rng.choice(['layer', 'batch']),
        downsample_act=rng.random() < 0.5,
    )
    return DAT, arch, dict(out_norm=rng.choice(['class', 'layer']))


def _biformer(rng: random.Random, stages: int) -> tuple[type, dict, dict]:
    sides = tuple(rng.randint(1, 4) for _ in range(stages))
    topks = tuple(rng.choice([0, 'all', rng.randint(1, side**2)]) for side in sides)
    routed = [
        dict(padding='tokens'),
        dict(routing='soft', lepe_kernel=0),
        dict(routing='differentiable', kv_pool=('adaptive_avg', 1)),
        dict(routing='projected', kv_pool=('max', 1), out_proj=False),
        {},
    ]
    arch = _common(rng, stages) | dict(
        topks=topks,
        mlp_ratios=_each(rng, stages, 1, 2, 1.5),
        attn_cfgs=tuple(
            rng.choice(routed) if isinstance(topk, int) and topk else {}
            for topk in topks
        ),
        pos_kernel=rng.choice([0, 1, 3]),
        mlp_kernel=rng.choice([0, 3]),
        layer_scale=rng.choice([None, 1e-6]),
        post_norm=rng.random() < 0.5,
        downsampling=rng.choice(['overlapping', 'patches']),
        downsample_norm=rng.choice(['layer', 'batch']),
        downsample_act=rng.random() < 0.5,
    )
    arguments = dict(regions_per_side=sides, out_norm=rng.choice(['batch', 'layer']))
    return BiFormer, arch, arguments


def _shunted(rng: random.Random, stages: int) -> tuple[type, dict, dict]:
    ratios = _each(rng, stages, 1, 2, 4)
    common = _common(rng, stages)
    common['num_heads'] = tuple(2 for _ in ratios)
    arch = common | dict(
        mlp_ratios=_each(rng, stages, 1, 2, 1.5),
        sr_ratios=ratios,
        stem_convs=rng.randint(0, 2),
        qkv_bias=rng.random() < 0.5,
        mlp_detail=rng.random() < 0.5,
        downsample_norm=rng.choice(['layer', 'batch']),
        downsample_act=rng.random() < 0.5,
    )
    return ShuntedTransformer, arch, {}


_NO_COUNTS = (0, -1, 1.5, '4', None, True, [3])
_NO_FLAGS = ('yes', 1, None)
_NO_NUMBERS = ('1', None, float('nan'), float('inf'))
_NO_NAMES = ('other', 3, None)
_BAD = dict(
    embed_dims=_NO_COUNTS,
    depths=_NO_COUNTS,
    num_heads=_NO_COUNTS,
    kinds=('', 'LX', 3, None),
    formulation=_NO_NAMES,
    strides=(1.5, '4', None),
    offset_kernel=_NO_COUNTS,
    offset_range=_NO_NUMBERS,
    bias=_NO_NAMES,
    use_offsets=_NO_FLAGS,
    window_size=_NO_COUNTS,
    neighborhood=(*_NO_COUNTS, 2),
    num_points=_NO_COUNTS,
    mlp_ratio=(*_NO_NUMBERS, 0, -1),
    conv_mlp=_NO_FLAGS,
    local_perception=_NO_FLAGS,
    layer_scale=('1', float('nan')),
    img_size=(*_NO_COUNTS, 3),
    conv_stem=_NO_FLAGS,
    stem_dims=(0, -1, 1.5, '4'),
    downsample_norm=_NO_NAMES,
    downsample_act=_NO_FLAGS,
    topks=('some', -1, 1.5, None),
    mlp_ratios=(*_NO_NUMBERS, 0, -1),
    attn_cfgs=(3, 'soft'),
    pos_kernel=(2, -1, 1.5, None),
    mlp_kernel=(2, -1, 1.5, None),
    post_norm=_NO_FLAGS,
    downsampling=_NO_NAMES,
    sr_ratios=(0, 3, '2', None),
    stem_convs=(-1, 1.5, '1', None),
    qkv_bias=_NO_FLAGS,
    mlp_detail=_NO_FLAGS,
)
_BAD_ARGUMENTS = dict(
    out_indices=[(), (9,), (-1,), (0, 0), 3, None, ('0',)],
    drop_path_rate=[-0.1, 1, '0.1', None, float('nan')],
    frozen_stages=[-2, 9, 'all', 0.5, None],
    arch=['huge', None, 3, {}],
)
_OPTIONAL = {
    *('strides', 'offset_kernel', 'offset_range', 'bias', 'use_offsets'),
    *('window_size', 'neighborhood', 'num_points', 'mlp_ratio', 'conv_mlp'),
    *('local_perception', 'layer_scale', 'img_size', 'conv_stem', 'stem_dims'),
    *('downsample_norm', 'downsample_act', 'attn_cfgs', 'pos_kernel', 'mlp_kernel'),
    *('post_norm', 'downsampling', 'stem_convs', 'qkv_bias', 'mlp_detail'),
}
