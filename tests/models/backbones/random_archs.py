"""Random architectures: valid ones, and ones with one invalid setting."""

import random
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from mmsparse.models import DAT, BiFormer, ShuntedTransformer, StagedTransformer


class Drawn(NamedTuple):
    """A backbone, and the arguments to build it with."""

    backbone: type
    arguments: dict[str, Any]


def draw(rng: random.Random) -> Drawn:
    """A small backbone of any family; an optional setting is given in half of them."""
    family = rng.choice([_dat, _biformer, _shunted, _staged])
    stages = rng.randint(1, 4)
    heads = _each(rng, stages, 1, 2)
    required = dict(
        embed_dims=tuple(rng.choice([4, 8, 12]) * n for n in heads),
        depths=_each(rng, stages, 1, 2),
        num_heads=heads,
    )
    backbone, own, arguments = family(rng, stages)
    own = required | dict(num_groups=tuple(rng.choice([1, n]) for n in heads)) | own
    arch = {
        field.name: own.get(field.name) or _value(rng, stages, field)
        for field in fields(backbone.arch_type)
        if field.default is MISSING or field.name == 'topks' or rng.random() < 0.5
    }
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
    """The arguments with one of them invalid, and its name."""
    arguments = drawn.arguments | dict(arch=dict(drawn.arguments['arch']))
    arch = arguments['arch']
    fault = rng.choice(['missing', 'unknown', 'length', 'value', 'value', 'argument'])
    if fault == 'argument':
        name = rng.choice(list(BAD_ARGUMENTS))
        arguments[name] = rng.choice(BAD_ARGUMENTS[name])
        return arguments, name
    if fault == 'missing':
        settings = fields(drawn.backbone.arch_type)
        name = rng.choice([x.name for x in settings if x.default is MISSING])
        del arch[name]
    elif fault == 'unknown':
        name = rng.choice(['depth', 'embed_dim', 'heads', 'patch_size'])
        arch[name] = 1
    elif fault == 'length':
        name = rng.choice([name for name, x in arch.items() if isinstance(x, tuple)])
        arch[name] = rng.choice([(), (arch[name] or (1,)) * 2])
    else:
        name = rng.choice(list(arch))
        bad = rng.choice(BAD[name])
        if isinstance(arch[name], tuple):
            stage = rng.randrange(len(arch[name]))
            bad = (*arch[name][:stage], bad, *arch[name][stage + 1 :])
        arch[name] = bad
    return arguments, name


def _each(rng: random.Random, stages: int, *choices: Any) -> tuple:
    return tuple(rng.choice(choices) for _ in range(stages))


def _value(rng: random.Random, stages: int, field: Any) -> Any:
    """A value of the setting; per-stage ones for all stages or one for each."""
    if 'Sequence' in str(field.type) and rng.random() < 0.8:
        return _each(rng, stages, *CHOICES[field.name])
    return rng.choice(CHOICES[field.name])


def _dat(rng: random.Random, stages: int) -> tuple[type, dict, dict]:
    block_types = tuple(
        ''.join(rng.choices('LSNDM', k=rng.randint(1, 2))) for _ in range(stages)
    )
    own = dict(block_types=block_types)
    return DAT, own, dict(out_norm=rng.choice(['class', 'layer']))


def _biformer(rng: random.Random, stages: int) -> tuple[type, dict, dict]:
    block_types = _each(rng, stages, 'routing', 'full', 'conv')
    sides = _each(rng, stages, 1, 2, 3, 4)
    routing = [
        dict(padding='tokens'),
        dict(routing='soft', lepe_kernel=0),
        dict(routing='differentiable', kv_pool=('adaptive_avg', 1)),
        dict(routing='projected', kv_pool=('max', 1), out_proj=False),
        None,
    ]
    own = dict(
        block_types=block_types,
        topks=tuple(rng.randint(1, side**2) for side in sides),
        attn_cfgs=tuple(
            rng.choice(routing) if block_type == 'routing' else {}
            for block_type in block_types
        ),
    )
    arguments = dict(regions_per_side=sides, out_norm=rng.choice(['batch', 'layer']))
    return BiFormer, own, arguments


def _shunted(rng: random.Random, stages: int) -> tuple[type, dict, dict]:
    return ShuntedTransformer, dict(num_heads=(2,) * stages), {}


def _staged(rng: random.Random, stages: int) -> tuple[type, dict, dict]:
    windows = dict(type='mmsparse.WindowAttention2d', window_size=3)
    neighbors = dict(type='mmsparse.NeighborhoodAttention2d', kernel_size=3)
    attention = rng.choice([None, neighbors, [[windows, neighbors]] * stages])
    arguments = dict(attention=attention, out_norm=rng.choice(['class', 'layer']))
    return StagedTransformer, {}, arguments


FLAGS = (True, False)
CHOICES = dict(
    mlp_ratios=(1, 2, 1.5),
    formulation=('v2022', 'v2023'),
    strides=(1, 2, 4),
    offset_kernels=(1, 3, 4, 5),
    offset_ranges=(-1, 0, 2, 1.5),
    position_biases=('table', 'log_cpb', 'depthwise', 'none', 'fixed'),
    use_offsets=(True, *FLAGS),
    window_sizes=(1, 3, 4, 7),
    neighborhood_sizes=(1, 3, 7),
    num_points=(1, 4),
    mlp_kernels=(0, 3),
    pos_kernels=(0, 1, 3),
    layer_scales=(None, 0, 1e-6),
    img_size=(128, 160, 224),
    stem_channels=(None, 4, 6),
    downsampling=('overlapping', 'patches'),
    downsample_norm=('layer', 'batch'),
    downsample_act=FLAGS,
    post_norm=FLAGS,
    sr_ratios=(1, 2, 4),
    aggregation=('conv', 'avg', 'max'),
    stem=('convs', 'patches'),
    stem_convs=(0, 1, 2),
    mlp_residual=FLAGS,
    qkv_bias=FLAGS,
)
NO_COUNTS = (0, -1, 1.5, '4', None, True, [3])
NO_NUMBERS = ('1', None, float('nan'), float('inf'))
BAD = dict(
    **dict.fromkeys(('embed_dims', 'depths', 'num_heads', 'num_groups'), NO_COUNTS),
    **dict.fromkeys(('strides', 'offset_kernels', 'window_sizes'), NO_COUNTS),
    **dict.fromkeys(('formulation', 'position_biases'), ('other', 3, None)),
    **dict.fromkeys(('downsampling', 'downsample_norm'), ('other', 3, None)),
    **dict.fromkeys(('aggregation', 'stem'), ('other', 3, None)),
    **dict.fromkeys(('use_offsets', 'post_norm', 'qkv_bias'), ('yes', 1, None)),
    mlp_residual=('yes', 1, None),
    **dict.fromkeys(('pos_kernels', 'mlp_kernels'), (2, -1, 1.5, None, True)),
    mlp_ratios=(*NO_NUMBERS, 0, -1),
    block_types=('', 'LX', 3, None),
    offset_ranges=NO_NUMBERS,
    neighborhood_sizes=(*NO_COUNTS, 2),
    num_points=NO_COUNTS,
    layer_scales=('1', float('nan')),
    img_size=(*NO_COUNTS, 3),
    stem_channels=(0, 1, -1, 1.5, '4'),
    downsample_act=('yes', 1, None),
    topks=('all', 0, -1, 1.5),
    attn_cfgs=(3, 'soft'),
    sr_ratios=(0, 3, '2', None, True),
    stem_convs=(-1, 1.5, '1', None),
)
BAD_ARGUMENTS = dict(
    out_indices=[(), (9,), (-9,), 3, None, ('0',), '01'],
    drop_path_rate=[-0.1, 1, '0.1', None, float('nan')],
    frozen_stages=[-2, 9, 'all', 0.5, None],
    arch=['huge', None, 3, {}],
)
