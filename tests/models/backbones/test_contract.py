"""What every backbone promises; a new one is a new entry of BACKBONES."""

import importlib
import re
from contextlib import nullcontext

import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from mmsparse.models import DAT, BiFormer, ShuntedTransformer
from mmsparse.ops import reference_only


def stl_micro(name):
    """An STL model in the size of nano."""
    nano, stl = BiFormer.arch_settings['nano'], BiFormer.arch_settings[name]
    sizes = ('embed_dims', 'depths', 'num_heads')
    return {**stl, **{size: nano[size] for size in sizes}}


BACKBONES = {
    'BiFormer': (BiFormer, dict(regions_per_side=4, out_norm='layer')),
    'BiFormer stl': (
        BiFormer,
        dict(arch=stl_micro('stl'), regions_per_side=4, out_norm='layer'),
    ),
    'BiFormer stl-nchw': (
        BiFormer,
        dict(arch=stl_micro('stl-nchw'), regions_per_side=4, out_norm='layer'),
    ),
    'DAT': (DAT, dict(out_norm='layer')),
    'ShuntedTransformer': (ShuntedTransformer, {}),
}
HOSTS = ('mmpretrain', 'mmdet', 'mmseg')
PICTURES = dict(
    large=lambda: 1e4 * torch.randn(2, 3, 64, 64),
    faint=lambda: 1e-4 * torch.randn(2, 3, 64, 64),
    white=lambda: torch.full((2, 3, 64, 64), 255.0),
    black=lambda: torch.zeros(2, 3, 64, 64),
)
ALL_LEVELS = dict(out_indices=(0, 1, 2, 3))


@pytest.fixture(params=BACKBONES.values(), ids=BACKBONES)
def build(request):
    """Build a nano backbone, the same weights every time."""
    backbone, options = request.param

    def build_nano(**arguments):
        torch.manual_seed(0)
        return backbone(**{'arch': 'nano', **options, **ALL_LEVELS, **arguments})

    return build_nano


@pytest.mark.parametrize('size', [(64, 64), (65, 93), (32, 160)], ids=str)
def test_returns_one_map_a_level_at_its_stride(build, size):
    backbone = build()

    outs = backbone(torch.rand(2, 3, *size))

    assert isinstance(outs, tuple)
    widths = backbone.arch_settings['nano']['embed_dims']
    if isinstance(backbone, ShuntedTransformer):  # its stem rounds down
        size = [(length + 1) // 4 * 4 for length in size]
    for out, width, stride in zip(outs, widths, (4, 8, 16, 32), strict=True):
        assert out.shape[:2] == (2, width)
        for length, pixels in zip(out.shape[2:], size, strict=True):
            assert length in (pixels // stride, -(-pixels // stride))


@pytest.mark.parametrize('out_indices', [(0,), (1, 3), (3,)], ids=str)
def test_returns_the_levels_asked_for_and_no_others(build, out_indices):
    backbone, x = build(out_indices=out_indices).eval(), torch.rand(1, 3, 64, 64)

    outs = backbone(x)

    every = build().eval()
    every.load_state_dict(backbone.state_dict(), strict=False)
    assert len(outs) == len(out_indices)
    for out, i in zip(outs, out_indices, strict=True):
        torch.testing.assert_close(out, every(x)[i])


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
            assert frozen(backbone.out_norms[f'layer{i}']) == (i < frozen_stages)


def test_norm_eval_keeps_the_statistics_of_batchnorm(build):
    backbone = build(norm_eval=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]

    if not norms:
        pytest.skip('has no BatchNorm')
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
    kind = {'BiFormer': 'batch', 'DAT': 'class'}[type(build()).__name__]
    classifier = build(out_indices=(3,), out_norm=kind)

    mismatch = build().load_state_dict(classifier.state_dict(), strict=False)

    assert {key.partition('.')[0] for key in mismatch.unexpected_keys} == {'out_norms'}
    assert {key.partition('.')[0] for key in mismatch.missing_keys} == {'out_norms'}


def gradients(backbone, x):
    """Outputs and gradients of all that is learned, one after the other."""
    outs = backbone(x)
    weights = [weight for weight in backbone.parameters() if weight.requires_grad]
    loss = sum(out.float().square().mean() for out in outs)
    return [*outs, *torch.autograd.grad(loss, weights)]


def test_bfloat16_stays_near_single_precision(build):
    backbone, x = build().eval(), torch.rand(2, 3, 65, 93)
    exact = gradients(backbone, x)

    with torch.autocast('cpu', torch.bfloat16):
        rounded = gradients(backbone, x)

    # Few values may differ much: a route is taken or not. Most must be the same.
    for tensors, least in ((slice(4), 0.98), (slice(4, None), 0.95)):
        near, far = (
            torch.cat([tensor.float().flatten() for tensor in found[tensors]])
            for found in (rounded, exact)
        )
        assert torch.cosine_similarity(near, far, 0) > least


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize('picture', PICTURES.values(), ids=PICTURES)
def test_extreme_pictures_give_finite_outputs_and_gradients(build, picture, dtype):
    backbone = build()
    half = torch.autocast('cpu', dtype) if dtype == torch.float16 else nullcontext()

    with half:
        found = gradients(backbone, picture())

    assert all(tensor.isfinite().all() for tensor in found)


def test_fast_paths_are_the_definition_in_values_and_gradients(build):
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


def test_pictures_may_come_channels_last(build):
    backbone, x = build().eval(), torch.rand(2, 3, 64, 96)

    actual = backbone(x.contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(actual, backbone(x))


def test_initializes_linear_maps_and_norms(build):
    backbone = build()
    if not backbone.default_init_cfg:
        pytest.skip('keeps the initialization of torch')
    backbone.init_weights()
    linears = [m for m in backbone.modules() if isinstance(m, nn.Linear)]

    weights = torch.cat([linear.weight.flatten() for linear in linears])
    assert abs(weights.std().item() - 0.02) < 1e-3
    assert all(linear.bias is None or not linear.bias.any() for linear in linears)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(out_indices=()), r'from 0 to 3; got \(\)'),
        (dict(out_indices=(2, 1)), r'got \(2, 1\)'),
        (dict(out_indices=(4,)), r'got \(4,\)'),
        (dict(out_indices=(-1,)), r'got \(-1,\)'),
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
    [(2, 3, 30, 64), (2, 3, 64, 0), (0, 3, 64, 64), (3, 64, 64), (2, 1, 64, 64)],
)
def test_what_is_no_batch_of_pictures_is_refused(build, shape):
    backbone = build()
    message = re.escape(
        f'H and W at least {backbone.min_side}, for the last stage; got {shape}'
    )
    with pytest.raises(ValueError, match=message):
        backbone(torch.zeros(shape))


def test_pictures_may_be_as_small_as_the_least_side(build):
    backbone = build().eval()

    outs = backbone(torch.rand(1, 3, backbone.min_side, backbone.min_side))

    assert backbone.min_side in (31, 32)
    assert outs[-1].shape[2:] == (1, 1)
    assert all(out.isfinite().all() for out in outs)


def test_an_arch_may_say_only_what_differs_from_another(build):
    backbone = build(arch=dict(base='nano', depths=(1, 1, 1, 1)))

    maps = backbone(torch.rand(1, 3, 64, 64))

    assert [x.shape[1] for x in maps] == [32, 64, 128, 256]
    with pytest.raises(
        ValueError, match=r"arch\['base'\] must be one of .*; got 'pico'"
    ):
        build(arch=dict(base='pico', depths=(1, 1, 1, 1)))
