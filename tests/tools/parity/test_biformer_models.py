import pytest
import torch
from parity.biformer_models import build
from parity.cases import UnsupportedCaseError

from mmsparse.conversion.biformer import rename_key

BLOCK = dict(dim=16, num_heads=2, n_win=2, topk=2, mlp_ratio=2)
BLOCK_KEYS = 'norm1.weight norm1.bias norm2.weight norm2.bias mlp.0.weight mlp.0.bias '
POS_KEYS = 'pos_embed.weight pos_embed.bias '
LOCAL_KEYS = 'attn.lepe.weight attn.lepe.bias '
ROUTED_KEYS = LOCAL_KEYS + (
    'attn.qkv.qkv.weight attn.qkv.qkv.bias attn.wo.weight attn.wo.bias '
)
FULL_KEYS = 'attn.qkv.weight attn.proj.weight attn.proj.bias '
FC2 = 'mlp.3.weight mlp.3.bias '

# Official class, arguments and, from its specification, the keys of its weights.
BLOCKS = {
    'all options': (
        'models.biformer.Block',
        dict(
            kv_downsample_mode='ada_maxpool',
            kv_per_win=2,
            qk_dim=8,
            qk_scale=0.3,
            param_attention='qkv',
            param_routing=True,
            diff_routing=True,
            soft_routing=True,
            mlp_dwconv=True,
            before_attn_dwconv=0,
            side_dwconv=0,
            layer_scale_init_value=1e-5,
            pre_norm=False,
            auto_pad=True,
            drop_path=0.1,
        ),
        'attn.qkv.qkv.weight attn.qkv.qkv.bias attn.router.emb.weight '
        'attn.router.emb.bias gamma1 gamma2 mlp.1.dwconv.weight mlp.1.dwconv.bias '
        + BLOCK_KEYS
        + FC2,
    ),
    'defaults': (
        'models.biformer.Block',
        {},
        POS_KEYS + ROUTED_KEYS + BLOCK_KEYS + FC2,
    ),
    'no attention': (
        'models.biformer.Block',
        dict(topk=0),
        'attn.1.weight attn.1.bias attn.2.weight attn.2.bias attn.3.weight attn.3.bias '
        + POS_KEYS
        + BLOCK_KEYS
        + FC2,
    ),
    'full': (
        'models.biformer.Block',
        dict(topk=-1, dim=16),
        POS_KEYS + FULL_KEYS + BLOCK_KEYS + FC2,
    ),
    'full, local': (
        'models.biformer.Block',
        dict(topk=-2, side_dwconv=3),
        POS_KEYS + FULL_KEYS + LOCAL_KEYS + BLOCK_KEYS + FC2,
    ),
    'stl': (
        'models.biformer_stl.BiFormerBlock',
        {},
        ROUTED_KEYS + BLOCK_KEYS + 'mlp.2.weight mlp.2.bias ',
    ),
    'stl-nchw': (
        'models.biformer_stl_nchw.nchwBlock',
        {},
        'attn.qkv_linear.weight attn.qkv_linear.bias attn.output_linear.weight '
        'attn.output_linear.bias mlp.2.weight mlp.2.bias ' + LOCAL_KEYS + BLOCK_KEYS,
    ),
    'stl-nchw, full': (
        'models.biformer_stl_nchw.nchwBlock',
        dict(topk=-1),
        'mlp.2.weight mlp.2.bias ' + FULL_KEYS + LOCAL_KEYS + BLOCK_KEYS,
    ),
}
MODEL = dict(
    depth=[1, 1, 1, 1],
    embed_dim=[16, 16, 16, 16],
    head_dim=8,
    topks=[1, 2, 1, -1],
    num_classes=3,
)
LEGACY = dict(MODEL, qk_dims=[8, 8, 8, 8], n_win=2, mlp_ratios=[2, 2, 2, 2])


@pytest.mark.parametrize(
    ('official_class', 'arguments', 'keys'), BLOCKS.values(), ids=BLOCKS
)
def test_blocks_have_the_weights_of_the_official_ones(official_class, arguments, keys):
    block = build(official_class, {**BLOCK, **arguments})

    assert set(block.state_dict()) == {rename_key(key) for key in keys.split()}
    assert block(torch.rand(1, 16, 6, 8)).shape == (1, 16, 6, 8)


def test_models_pass_every_option_to_their_blocks():
    model = build(
        'models.biformer.BiFormer',
        dict(
            LEGACY,
            kv_downsample_mode='avgpool',
            kv_downsample_ratios=[4, 2, 1, 1],
            soft_routing=True,
            diff_routing=True,
            qk_scale=0.2,
            side_dwconv=3,
            mlp_dwconv=True,
            layer_scale_init_value=0.1,
            pre_norm=False,
        ),
    )
    first, second, _, last = (stage[0] for stage in model.backbone.stages)

    assert (first.attn.kv_pool, second.attn.kv_pool) == (('avg', 4), ('avg', 2))
    assert first.attn.routing == 'differentiable'
    assert first.attn.scale == 0.2
    assert first.attn.split == (8, 8, 16)
    assert first.attn.lepe.kernel_size == (3, 3)
    assert first.attn.num_heads == 1
    assert (last.attn.num_heads, last.attn.lepe) == (8, None)
    assert first.mlp.dwconv is not None
    assert first.post_norm
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ('norm_layer', 'expected'),
    [({}, 'layer3'), ({'norm_layer': 'nn.BatchNorm2d'}, 'batch3')],
    ids=['default', 'batch'],
)
def test_norm_layer_chooses_the_norms_of_stl(norm_layer, expected):
    model = build(
        'models.biformer_stl.BiFormerSTL',
        dict(MODEL, n_wins=[4, 2, 2, 1], **norm_layer),
    )

    assert list(model.backbone.out_norms) == [expected]
    assert [stage[0].attn.regions_per_side for stage in model.backbone.stages[:3]] == [
        4,
        2,
        2,
    ]
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ('official_class', 'arguments', 'message'),
    [
        ('models.biformer.Decoder', {}, 'no counterpart of Decoder'),
        ('models.biformer.Block', dict(BLOCK, topk=-3), 'topk=-3'),
        ('models.biformer.Block', dict(BLOCK, param_attention='v'), "param_.*='v'"),
        (
            'models.biformer.Block',
            dict(BLOCK, diff_routing=True),
            r'False, True, False',
        ),
        ('models.biformer.Block', {}, r"missing: \['dim'\]"),
        ('models.biformer_stl_nchw.nchwBlock', dict(BLOCK, topk=-2), 'topk=-2'),
        ('models.biformer.BiFormer', dict(LEGACY, in_chans=1), 'in_chans=1'),
        (
            'models.biformer_stl.BiFormerSTL',
            dict(MODEL, norm_layer='nn.GroupNorm'),
            "norm_layer='GroupNorm'",
        ),
    ],
)
def test_arguments_without_a_counterpart_raise_an_error(
    official_class, arguments, message
):
    with pytest.raises(UnsupportedCaseError, match=message):
        build(official_class, arguments)
