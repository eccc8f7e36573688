"""Contract of every backbone; a new family is tested without an edit."""

import copy
import importlib
import inspect
import re
from contextlib import nullcontext

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import NORM_LAYERS
from mmsparse.models.layers.block import DropPath
from mmsparse.ops import reference_only

NANO = dict(embed_dims=(32, 64, 128, 256), depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8))
MORE_ARCHS = {
    'biformer-stl': dict(base='stl', **NANO),
    'biformer-stl-nchw': dict(base='stl-nchw', **NANO),
}
OPTIONS = dict(out_norm='layer', regions_per_side=4)  # of those that have them
HOSTS = ('mmpretrain', 'mmdet', 'mmseg')
IMAGES = dict(
    large=lambda: 1e4 * torch.randn(2, 3, 64, 64),
    faint=lambda: 1e-4 * torch.randn(2, 3, 64, 64),
    white=lambda: torch.full((2, 3, 64, 64), 255.0),
    black=lambda: torch.zeros(2, 3, 64, 64),
)
ALL_LEVELS = dict(out_indices=(0, 1, 2, 3))


def cases():
    """Family and arch of every backbone to test, by name."""
    nanos = {family: (family, 'nano') for family in BACKBONES}
    more = {name: (name.partition('-')[0], arch) for name, arch in MORE_ARCHS.items()}
    return nanos | more


def builder(family, arch):
    """A function that builds a small backbone, the same weights every time."""
    backbone = BACKBONES[family]
    known = inspect.signature(backbone).parameters
    options = {name: value for name, value in OPTIONS.items() if name in known}

    def build(**arguments):
        torch.manual_seed(0)
        return backbone(**{'arch': arch, **options, **ALL_LEVELS, **arguments})

    return build


@pytest.fixture(params=cases().values(), ids=cases())
def build(request):
    return builder(*request.param)


@pytest.mark.parametrize('size', [(64, 64), (65, 93), (32, 160)], ids=str)
def test_returns_one_feature_map_per_stage_at_its_stride(build, size):
    backbone = build()

    outs = backbone(torch.rand(2, 3, *size))

    assert isinstance(outs, tuple)
    widths = backbone.arch_settings['nano'].embed_dims
    for out, width, stride in zip(outs, widths, (4, 8, 16, 32), strict=True):
        assert out.shape[:2] == (2, width)
        for length, pixels in zip(out.shape[2:], size, strict=True):
            assert length in (pixels // stride, -(-pixels // stride))


@pytest.mark.parametrize('out_indices', [(0,), (1, 3), (3,)], ids=str)
def test_returns_the_stages_of_out_indices_alone(build, out_indices):
    backbone, x = build(out_indices=out_indices).eval(), torch.rand(1, 3, 64, 64)

    outs = backbone(x)

    every = build().eval()
    every.load_state_dict(backbone.state_dict(), strict=False)
    assert len(outs) == len(out_indices)
    for out, i in zip(outs, out_indices, strict=True):
        torch.testing.assert_close(out, every(x)[i])


@pytest.mark.parametrize(
    ('out_indices', 'stages'),
    [((-1,), (3,)), ((1, -1, 3), (1, 3)), ((2, 0), (0, 2)), ([-4, 1, 1], (0, 1))],
    ids=str,
)
def test_out_indices_may_be_negative_repeated_or_unsorted(build, out_indices, stages):
    backbone = build(out_indices=out_indices).eval()
    expected = build(out_indices=stages).eval()
    expected.load_state_dict(backbone.state_dict())
    x = torch.rand(1, 3, 64, 64)

    assert backbone.out_indices == stages
    assert all(map(torch.equal, backbone(x), expected(x)))
    widths = backbone.arch.embed_dims
    assert backbone.feature_info.channels() == [widths[i] for i in stages]


def test_hooks_on_stages_fire(build):
    backbone = build(out_indices=(3,), with_cp=True)
    seen = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda *args: seen.append(args[2]))

    backbone(torch.rand(1, 3, 64, 64))

    widths = backbone.arch.embed_dims
    assert [x.shape[1:] for x in seen] == [
        (width, 16 // 2**i, 16 // 2**i) for i, width in enumerate(widths)
    ]


def test_forward_intermediates_is_that_of_timm(build):
    backbone, x = build(out_indices=(3,)).eval(), torch.rand(1, 3, 64, 64)
    seen = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda *args: seen.append(args[2]))
    (out,) = backbone(x)
    raw = list(seen)

    last, every = backbone.forward_intermediates(x)
    assert torch.equal(last, out)
    assert all(map(torch.equal, every, raw))
    _, normalized = backbone.forward_intermediates(x, indices=2, norm=True)
    assert torch.equal(normalized[0], raw[2])
    assert torch.equal(normalized[1], out)
    seen.clear()
    (first,) = backbone.forward_intermediates(
        x, [0, -4], stop_early=True, output_fmt='NHWC', intermediates_only=True
    )
    assert len(seen) == 1
    assert torch.equal(first.permute(0, 3, 1, 2), raw[0])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(indices=[4]), r'indices must be stages from 0 to 3, .*; got \[4\]'),
        (dict(indices=5), 'indices must be a list .* from 1 to 4; got 5'),
        (dict(output_fmt='NLC'), "output_fmt must be one of .*; got 'NLC'"),
    ],
    ids=str,
)
def test_wrong_arguments_of_forward_intermediates_raise(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build().forward_intermediates(torch.rand(1, 3, 64, 64), **arguments)


def test_feature_info_has_the_methods_of_timm(build):
    info = build(out_indices=(1, 3)).feature_info

    widths = [stage['num_chs'] for stage in info]
    assert len(info) == 4
    assert info.channels() == [widths[1], widths[3]]
    assert info.reduction() == [8, 32]
    assert info.channels(0) == widths[0]
    assert info.reduction([0, -1]) == [4, 32]
    assert info.module_name() == ['stages.1', 'stages.3']
    assert info.get_dicts(['reduction'], [0, 1]) == [
        dict(reduction=4),
        dict(reduction=8),
    ]
    assert info.get_dicts(idx=2) == dict(
        num_chs=widths[2], reduction=16, module='stages.2', index=2
    )


def test_activation_checkpointing_can_be_set_later(build):
    backbone = build()

    backbone.set_grad_checkpointing()
    assert backbone.with_cp
    assert all(stage.with_cp for stage in backbone.stages)

    backbone.with_cp = False
    assert not any(stage.with_cp for stage in backbone.stages)


def test_timm_groups_parameters_by_depth(build):
    helpers = pytest.importorskip('timm.models')
    backbone = build()
    names = [name for name, _ in backbone.named_parameters()]

    blocks, stages = (
        helpers.group_parameters(backbone, backbone.group_matcher(coarse))
        for coarse in (False, True)
    )

    assert sorted(sum(blocks.values(), [])) == sorted(names)
    assert len(stages) == 5 + hasattr(backbone, 'out_norms')
    depths = {name: depth for depth, group in blocks.items() for name in group}
    assert all(depths[name] == 0 for name in names if name.startswith('downsamples.0'))
    order = [depths[n] for n in names if n.startswith('stages') and 'norm1.w' in n]
    assert order == sorted(set(order))


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (3,)], ids=str)
def test_every_trainable_parameter_gets_a_finite_gradient(build, out_indices):
    backbone = build(out_indices=out_indices)

    sum(out.square().mean() for out in backbone(torch.rand(2, 3, 65, 93))).backward()

    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_checkpointing_changes_neither_output_nor_gradient(build):
    plain, frugal = build(), build(with_cp=True)
    x = torch.rand(2, 3, 64, 64)
    outs = []
    for backbone in (plain, frugal):
        outs.append(backbone(x))
        sum(out.square().mean() for out in outs[-1]).backward()

    torch.testing.assert_close(*outs)
    for (name, one), other in zip(
        plain.named_parameters(), frugal.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_evaluation_is_deterministic_and_independent_of_batch_mates(build):
    backbone, x = build(drop_path_rate=0.5).eval(), torch.rand(3, 3, 64, 64)

    outs = backbone(x)

    torch.testing.assert_close(backbone(x), outs, atol=0, rtol=0)
    torch.testing.assert_close(backbone(x[1:2]), tuple(out[1:2] for out in outs))


def test_stochastic_depth_acts_in_training_only(build):
    backbone, x = build(drop_path_rate=0.9), torch.rand(2, 3, 64, 64)
    backbone.norm_eval = True
    backbone.train()

    assert not torch.equal(backbone(x)[-1], backbone(x)[-1])


def test_drop_path_rates_grow_linearly_over_all_blocks(build):
    modules = build(drop_path_rate=0.4).modules()
    rates = [m.drop_prob for m in modules if isinstance(m, DropPath)]

    assert rates == pytest.approx(torch.linspace(0, 0.4, len(rates)).tolist())


def test_train_and_eval_return_the_backbone(build):
    backbone = build()

    assert backbone.train() is backbone
    assert backbone.eval() is backbone


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
def test_frozen_stages_stay_frozen_in_training(build, frozen_stages):
    backbone = build(frozen_stages=frozen_stages, drop_path_rate=0.5).train()

    def frozen(module):
        return not module.training and not any(
            parameter.requires_grad for parameter in module.parameters()
        )

    stages = zip(backbone.downsamples, backbone.stages, strict=True)
    for i, (downsample, stage) in enumerate(stages):
        assert frozen(downsample) == (i < max(frozen_stages, 1) and frozen_stages >= 0)
        assert frozen(stage) == (i < frozen_stages)
        if backbone.out_norm is not None:
            assert frozen(backbone.out_norms[f'{backbone.out_norm}{i}']) == (
                i < frozen_stages
            )


def test_norm_eval_keeps_the_statistics_of_batchnorm(build):
    backbone = build(norm_eval=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]

    if not norms:
        pytest.skip('no BatchNorm')
    assert not any(norm.training for norm in norms)
    assert backbone.training


@pytest.mark.parametrize('host', HOSTS)
def test_builds_by_name_under_every_host(host, build):
    models = importlib.import_module(f'{host}.registry').MODELS
    name = type(build()).__name__
    with DefaultScope.overwrite_default_scope(host):
        backbone = models.build(dict(type=f'mmsparse.{name}', arch='nano'))

    assert type(backbone) is type(build())


def test_the_state_dict_makes_the_round_trip(build):
    one, x = build().eval(), torch.rand(1, 3, 64, 64)
    torch.manual_seed(1)
    for parameter in one.parameters():
        nn.init.normal_(parameter, std=0.2)
    other = build().eval()
    other.load_state_dict(one.state_dict())

    torch.testing.assert_close(other(x), one(x), atol=0, rtol=0)


def test_norms_of_a_classifier_do_not_load_into_dense_outputs(build):
    if build().out_norm is None:
        pytest.skip('stages end with their own norms, the same for all tasks')
    default = inspect.signature(type(build())).parameters['out_norm'].default
    classifier = build(out_indices=(3,), out_norm=default)

    mismatch = build().load_state_dict(classifier.state_dict(), strict=False)

    assert {key.partition('.')[0] for key in mismatch.unexpected_keys} == {'out_norms'}
    assert {key.partition('.')[0] for key in mismatch.missing_keys} == {'out_norms'}


def mean_square(out):
    return out.float().square().mean()


def mean_with_noise(out):
    """A loss with large gradients; a norm has a constant mean square."""
    noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    return (out.float() * noise).mean()


def gradients(backbone, x, loss=mean_with_noise):
    """Outputs and gradients of all trainable parameters, as one list."""
    outs = backbone(x)
    weights = [weight for weight in backbone.parameters() if weight.requires_grad]
    return [*outs, *torch.autograd.grad(sum(map(loss, outs)), weights)]


def test_bfloat16_stays_near_single_precision(build):
    backbone, x = build().eval(), torch.rand(2, 3, 65, 93)
    exact = gradients(backbone, x)

    with torch.autocast('cpu', torch.bfloat16):
        rounded = gradients(backbone, x)

    # Few values may differ much: a route is taken or not. Most must be the same.
    for tensors in (slice(4), slice(4, None)):
        near, far = (
            torch.cat([tensor.float().flatten() for tensor in found[tensors]])
            for found in (rounded, exact)
        )
        assert torch.cosine_similarity(near, far, 0) > 0.98


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('image', IMAGES.values(), ids=IMAGES)
def test_extreme_images_give_finite_outputs_and_gradients(build, image, dtype):
    backbone = build()
    half = torch.autocast('cpu', dtype) if dtype == torch.float16 else nullcontext()

    with half:
        found = gradients(backbone, image(), loss=mean_square)

    assert all(tensor.isfinite().all() for tensor in found)


def test_fast_paths_equal_the_reference_in_values_and_gradients(build):
    backbone, x = build(), torch.rand(2, 3, 65, 93)

    fast = gradients(backbone, x)
    with reference_only():
        expected = gradients(backbone, x)

    torch.testing.assert_close(fast, expected, rtol=1e-3, atol=1e-5)


def test_deterministic_mode_repeats_every_bit(build):
    backbone, x = build(), torch.rand(2, 3, 65, 93)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(backbone, x), gradients(backbone, x)
    finally:
        torch.use_deterministic_algorithms(False)

    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_images_may_be_channels_last(build):
    backbone, x = build().eval(), torch.rand(2, 3, 64, 96)

    actual = backbone(x.contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(actual, backbone(x))


def test_initializes_linear_layers(build):
    backbone = build()
    if not backbone.default_init_cfg:
        pytest.skip('keeps the default initialization of torch')
    backbone.init_weights()
    linears = [m for m in backbone.modules() if isinstance(m, nn.Linear)]

    weights = torch.cat([linear.weight.flatten() for linear in linears])
    assert abs(weights.std().item() - 0.02) < 1e-3
    assert all(linear.bias is None or not linear.bias.any() for linear in linears)


def test_norms_have_no_weight_decay(build):
    backbone = build()
    parameters = dict(backbone.named_parameters())
    norms = [m for m in backbone.modules() if isinstance(m, NORM_LAYERS)]

    names = backbone.no_weight_decay()

    exempt = {id(parameters[name]) for name in names}
    assert {id(p) for norm in norms for p in norm.parameters()} <= exempt
    assert 2 * len(names) < len(parameters)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(out_indices=()), r'stages from 0 to 3, .*; got \(\)'),
        (dict(out_indices=(4,)), r'got \(4,\)'),
        (dict(out_indices=(-5,)), r'from -4 to -1, .*; got \(-5,\)'),
        (dict(frozen_stages=5), 'frozen_stages must be an integer from -1 to 4; got 5'),
        (
            dict(drop_path_rate=1.0),
            r'drop_path_rate must be a number in \[0, 1\); got 1.0',
        ),
    ],
)
def test_arguments_out_of_range_are_refused(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize(
    'shape',
    [(2, 3, 30, 64), (2, 3, 64, 0), (0, 3, 64, 64), (3, 64, 64)],
)
def test_inputs_of_another_shape_are_refused(build, shape):
    backbone = build()
    message = re.escape(
        f'H and W at least {backbone.min_side}, for the last stage; got {shape}'
    )
    with pytest.raises(ValueError, match=message):
        backbone(torch.zeros(shape))


def test_images_may_be_as_small_as_min_side(build):
    backbone = build().eval()

    outs = backbone(torch.rand(1, 3, backbone.min_side, backbone.min_side))

    assert backbone.min_side in (31, 32)
    assert outs[-1].shape[2:] == (1, 1)
    assert all(out.isfinite().all() for out in outs)


def test_an_arch_may_have_only_what_differs_from_its_base(build):
    arch = dict(base='nano', depths=[1, 1, 1, 1])
    before = copy.deepcopy(arch)

    backbone = build(arch=arch)

    outs = backbone(torch.rand(1, 3, 64, 64))
    assert arch == before
    assert [x.shape[1] for x in outs] == [32, 64, 128, 256]
    with pytest.raises(
        ValueError, match=r"arch\['base'\] must be one of .*; got 'atto'"
    ):
        build(arch=dict(base='atto', depths=(1, 1, 1, 1)))


def test_layer_depths_count_the_blocks_from_stem_to_outputs(build):
    backbone = build()
    depths = backbone.arch.depths
    ends = [sum(depths[: i + 1]) for i in range(4)]

    found = {}
    for name, _ in backbone.named_parameters():
        depth, count = backbone.get_layer_depth(f'backbone.{name}', 'backbone.')
        assert (depth, count) == backbone.get_layer_depth(name)
        assert count == sum(depths) + 2
        part, i, place = (*name.split('.'), '')[:3]
        found.setdefault((part, i, place if part == 'stages' else ''), set()).add(depth)

    for (part, i, place), depths_found in found.items():
        if part == 'out_norms':
            expected = count - 1
        elif part == 'downsamples':
            expected = ends[int(i) - 1] if int(i) else 0
        else:
            first = ends[int(i)] - depths[int(i)] + 1
            expected = first + int(place) if place.isdigit() else ends[int(i)]
        assert depths_found == {expected}, (part, i, place)
    assert {x for depth in found.values() for x in depth} >= set(range(count - 1))
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (count - 1, count)


def test_layer_depths_leave_out_stages_that_are_not_built(build):
    backbone = build(out_indices=(0, 1))

    depths = [backbone.get_layer_depth(name) for name, _ in backbone.named_parameters()]

    built = sum(backbone.arch.depths[:2])
    assert {count for _, count in depths} == {built + 2}
    assert set(range(built + 1)) <= {depth for depth, _ in depths}
