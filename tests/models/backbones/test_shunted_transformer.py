import pytest
import torch
from torch import nn

from mmsparse.models import ShuntedTransformer
from mmsparse.models.layers.norm import LayerNorm2d

FOUR_LEVELS = dict(out_indices=(0, 1, 2, 3))


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ('arch', 'backbone_only', 'with_head'),
    [
        ('tiny', 11_040_576, 11_553_576),
        ('small', 21_888_256, 22_401_256),
        ('base', 39_101_376, 39_614_376),
    ],
)
def test_has_the_published_number_of_parameters(arch, backbone_only, with_head):
    with torch.device('meta'):
        backbone, head = ShuntedTransformer(arch), nn.Linear(512, 1000)

    assert count_parameters(backbone) == backbone_only
    assert count_parameters(backbone) + count_parameters(head) == with_head


def test_nano_is_small():
    assert 1.5e6 < count_parameters(ShuntedTransformer('nano')) < 2e6


@pytest.mark.parametrize(('size', 'sides'), [(64, [16, 8, 4, 2]), (93, [23, 12, 6, 3])])
def test_the_stem_rounds_down_and_later_stages_up(size, sides):
    outs = ShuntedTransformer('nano', **FOUR_LEVELS)(torch.rand(1, 3, size, size))

    assert [out.shape[-1] for out in outs] == sides


def test_the_next_stage_takes_the_normalized_feature_map():
    backbone = ShuntedTransformer('nano', **FOUR_LEVELS).eval()

    outs = backbone(torch.rand(1, 3, 64, 64))

    for i in range(3):
        x = outs[i]
        for module in (backbone.downsamples[i + 1], *backbone.stages[i + 1]):
            x = module(x)
        torch.testing.assert_close(x, outs[i + 1])


def test_weights_of_a_classifier_load_into_the_dense_backbone():
    classifier = ShuntedTransformer('nano')
    dense = ShuntedTransformer('nano', **FOUR_LEVELS)

    dense.load_state_dict(classifier.state_dict())


@pytest.mark.parametrize(('arch', 'convs'), [('tiny', 0), ('small', 1), ('base', 2)])
def test_the_stem_has_the_published_convolutions(arch, convs):
    with torch.device('meta'):
        conv = ShuntedTransformer(arch, out_indices=(0,)).downsamples[0].conv
    kernels = [m.kernel_size[0] for m in conv if isinstance(m, nn.Conv2d)]

    assert kernels == [7, *[3] * convs, 2]


def test_a_stem_of_patches_does_not_overlap_and_rounds_down():
    backbone = ShuntedTransformer(dict(base='nano', stem='patches'), **FOUR_LEVELS)

    outs = backbone(torch.rand(1, 3, 67, 64))

    (conv,) = (m for m in backbone.downsamples[0] if isinstance(m, nn.Conv2d))
    assert (conv.kernel_size, conv.stride, conv.padding) == ((4, 4), (4, 4), (0, 0))
    assert outs[0].shape[2:] == (16, 16)
    assert backbone.min_side == 32


def test_downsample_act_is_a_gelu_after_every_downsampling():
    last = [type(module[-1]) for module in ShuntedTransformer('nano').downsamples]

    assert last == [nn.GELU] * 4
    assert type(ShuntedTransformer('tiny').downsamples[0][-1]) is LayerNorm2d


def test_the_convolution_of_the_mlp_is_residual_unless_disabled():
    released, plain = 'nano', dict(base='nano', mlp_residual=False)

    residuals = [
        {stage[0].mlp.dwconv.residual for stage in model.stages}
        for model in map(ShuntedTransformer, (released, plain))
    ]

    assert residuals == [{True}, {False}]


def test_norms_have_the_released_epsilon():
    """1e-6 on the trunk; PyTorch's default where the official class gives none."""
    backbone = ShuntedTransformer('nano')
    norms = {
        name: module.eps
        for name, module in backbone.named_modules()
        if isinstance(module, nn.LayerNorm)
    }

    for name, eps in norms.items():
        on_trunk = 'attn' not in name and 'downsamples' not in name
        assert eps == (1e-6 if on_trunk else 1e-5), name


def test_initializes_convolutions_by_their_fan_out_per_group():
    backbone = ShuntedTransformer('nano')
    backbone.init_weights()
    block = backbone.stages[0][0]

    for conv, fan_out in (
        (backbone.downsamples[0].conv[0], 7 * 7 * 32),
        (block.attn.coarse.reduce, 8 * 8 * 32),
        (backbone.stages[3][0].mlp.dwconv, 3 * 3),
    ):
        deviation = (2 / fan_out) ** 0.5
        assert conv.weight.std().item() == pytest.approx(deviation, rel=0.05)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert not any(conv.bias.any() for conv in convs if conv.bias is not None)


def test_pretrained_weights_replace_the_initialization(tmp_path):
    trained = ShuntedTransformer('nano')
    torch.save(trained.state_dict(), tmp_path / 'trained.pth')

    backbone = ShuntedTransformer(
        'nano',
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'trained.pth')),
    )
    backbone.init_weights()

    torch.testing.assert_close(backbone.state_dict(), trained.state_dict())


def test_compiles_into_one_graph():
    arch, x = dict(base='nano', depths=1), torch.rand(1, 3, 65, 93)
    backbone = ShuntedTransformer(arch, **FOUR_LEVELS).eval()

    compiled = torch.compile(backbone, fullgraph=True, backend='eager')

    torch.testing.assert_close(compiled(x), backbone(x))


def test_autocast_stays_near_float32():
    backbone, x = ShuntedTransformer('nano').eval(), torch.rand(1, 3, 65, 93)

    with torch.autocast('cpu', torch.bfloat16):
        (rounded,) = backbone(x)

    (exact,) = backbone(x)
    assert (rounded.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), r"\['base', 'nano', 'small', 'tiny'\]; got 'huge'"),
        (
            dict(arch=dict(base='nano', num_heads=(2, 3, 4, 8))),
            r'stages\[1\]: .* in_channels=64 and num_heads=3',
        ),
        (
            dict(arch=dict(base='nano', num_heads=(1, 2, 4, 8))),
            r'stages\[0\]: .* num_heads=1 and sr_ratio=8',
        ),
        (
            dict(arch=dict(base='nano', sr_ratios=(8, 4, 3, 1))),
            r'sr_ratios\[2\] must be one of \[1, 2, 4, 8\]; got 3',
        ),
        (dict(arch=dict(base='nano', stem_convs=-1)), 'at least 0; got -1'),
        (
            dict(arch=dict(base='nano', aggregation='sum')),
            "aggregation must be one of .*; got 'sum'",
        ),
        (
            dict(arch=dict(base='nano', downsample_norm='group')),
            "downsample_norm must be one of .*; got 'group'",
        ),
        (dict(arch=dict(base='nano', heads=3)), r"unknown: \['heads'\]"),
        (
            dict(arch=dict(depths=(1,))),
            r"missing: \['embed_dims', 'num_heads', 'sr_ratios'\]",
        ),
    ],
)
def test_invalid_arguments_raise_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShuntedTransformer(**{'arch': 'nano', **arguments})


@pytest.mark.parametrize(
    ('sr_ratios', 'smallest'),
    [
        ((8, 4, 2, 1), 31),
        ((2, 4, 2, 1), 27),
        ((1, 1, 2, 1), 19),
        ((1, 1, 1, 2), 35),
        ((1, 1, 1, 1), 3),
    ],
)
def test_images_must_be_at_least_min_side(sr_ratios, smallest):
    backbone = ShuntedTransformer(dict(base='nano', sr_ratios=sr_ratios)).eval()

    (out,) = backbone(torch.rand(1, 3, smallest, 64))
    assert out.isfinite().all()

    message = rf'at least {smallest}, .* got \(1, 3, 64, {smallest - 1}\)'
    with pytest.raises(ValueError, match=message):
        backbone(torch.rand(1, 3, 64, smallest - 1))


def test_without_a_convolution_the_mlp_acts_on_single_positions():
    backbone = ShuntedTransformer(dict(base='nano', mlp_kernels=0))
    mlp = backbone.stages[0][0].mlp
    x = torch.rand(1, 32, 4, 4)
    changed = x.clone()
    changed[..., 0, 0] += 1

    differs = (mlp(x) != mlp(changed)).any(dim=1)[0]

    assert differs.nonzero().tolist() == [[0, 0]]
