"""Images with other channels than RGB, and RGB weights that are adapted to them."""

import re

import pytest
import test_contract
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from mmsparse import create_backbone, create_model
from mmsparse.apis import load_weights
from mmsparse.checkpoint.state_dict import load_state_dict
from mmsparse.conversion.families import FAMILIES
from mmsparse.models.backbones import BACKBONES, images
from mmsparse.models.backbones.base import image_channels

NANOS = [f'{family}-nano' for family in BACKBONES]


@pytest.fixture(params=test_contract.cases().values(), ids=test_contract.cases())
def build(request):
    return test_contract.builder(*request.param)


@pytest.fixture
def logged(logged_by):
    """Lines that backbones log."""
    return logged_by(images)


def stem(backbone):
    """Name and module of the first convolution."""
    modules = backbone.named_modules()
    return next((k, x) for k, x in modules if isinstance(x, nn.Conv2d))


@pytest.mark.parametrize('in_channels', [1, 2, 4, 7])
def test_a_backbone_takes_images_of_in_channels(build, in_channels):
    backbone = build(in_channels=in_channels)
    x = torch.rand(2, in_channels, 65, 93, requires_grad=True)

    sum(out.square().mean() for out in backbone(x)).backward()

    assert stem(backbone)[1].in_channels == image_channels(backbone) == in_channels
    assert (x.grad.abs().amax((0, 2, 3)) > 0).all()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_a_gray_image_gives_what_rgb_of_equal_channels_gives(build):
    rgb, gray = build().eval(), build(in_channels=1).eval()
    gray.load_state_dict(rgb.state_dict())
    one = torch.rand(2, 1, 64, 64, requires_grad=True)
    three = one.detach().repeat(1, 3, 1, 1).requires_grad_()
    outs = gray(one), rgb(three)
    for found in outs:
        sum(test_contract.mean_with_noise(out) for out in found).backward()

    torch.testing.assert_close(*outs)
    torch.testing.assert_close(one.grad, three.grad.sum(1, keepdim=True))
    other = dict(rgb.named_parameters())
    for name, parameter in gray.named_parameters():
        expected = other[name].grad
        if name == f'{stem(gray)[0]}.weight':
            expected = expected[:, :1]  # of equal channels, equal gradients
        torch.testing.assert_close(parameter.grad, expected, msg=name)


@pytest.mark.parametrize(
    ('in_channels', 'channels'),
    [(2, 'RG'), (4, 'RGBR'), (6, 'RGBRGB'), (7, 'RGBRGBR')],
)
def test_more_channels_repeat_the_rgb_weights_scaled(build, in_channels, channels):
    rgb, other = build(), build(in_channels=in_channels)

    other.load_state_dict(rgb.state_dict())

    weight = stem(rgb)[1].weight
    expected = [weight[:, 'RGB'.index(x)] * 3 / in_channels for x in channels]
    torch.testing.assert_close(stem(other)[1].weight, torch.stack(expected, 1))


@pytest.mark.parametrize('in_channels', [1, 2, 3, 5])
def test_the_rule_is_that_of_timm(in_channels):
    manipulate = pytest.importorskip('timm.models._manipulate')
    rgb = create_backbone('dat-nano')
    other = create_backbone('dat-nano', in_channels=in_channels)

    other.load_state_dict(rgb.state_dict())

    expected = manipulate.adapt_input_conv(in_channels, stem(rgb)[1].weight)
    torch.testing.assert_close(stem(other)[1].weight, expected)


def from_init_cfg(name, path):
    family, _, arch = name.partition('-')
    cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    backbone = BACKBONES[family](arch, in_channels=1, init_cfg=cfg)
    backbone.init_weights()
    return backbone


def by_mmengine(name, path):
    model = create_model(name, num_classes=3, in_channels=1)
    load_checkpoint(model, str(path), strict=True)
    return model.backbone


def by_load_weights(name, path):
    model = create_model(name, num_classes=3, in_channels=1)
    load_weights(model, path)
    return model.backbone


WAYS = {
    'init_cfg': from_init_cfg,
    'load_from': by_mmengine,
    'load_weights': by_load_weights,
    'create_backbone': lambda *args: create_backbone(*args, in_channels=1),
    'create_model': lambda *args: create_model(*args, 3, in_channels=1).backbone,
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', NANOS)
def test_every_way_of_loading_adapts_the_weights(name, way, tmp_path, logged):
    rgb = create_model(name, num_classes=3)
    torch.save(rgb.state_dict(), tmp_path / 'rgb.pth')

    gray = WAYS[way](name, tmp_path / 'rgb.pth')

    key, conv = stem(rgb.backbone)
    expected = rgb.backbone.state_dict()
    expected[f'{key}.weight'] = conv.weight.sum(1, keepdim=True)
    torch.testing.assert_close(gray.state_dict(), expected)
    lines = [line for line in logged if 'adapted' in line]
    assert len(lines) == 1
    assert lines[0].endswith(f'{key}.weight: RGB weights adapted to in_channels=1.')


@pytest.mark.parametrize('name', [f'{family}-nano' for family in FAMILIES])
def test_official_weights_are_adapted(name, tmp_path):
    family, _, arch = name.partition('-')
    rgb = create_backbone(name)
    official = {
        FAMILIES[family].official(f'backbone.{key}', arch): tensor
        for key, tensor in rgb.state_dict().items()
    }
    torch.save(official, tmp_path / 'official.pth')

    thermal = create_backbone(name, tmp_path / 'official.pth', in_channels=4)

    expected = stem(rgb)[1].weight[:, [0, 1, 2, 0]] * 0.75
    torch.testing.assert_close(stem(thermal)[1].weight, expected)


def test_weights_of_the_same_channels_are_not_changed(build, logged):
    one, other = build(in_channels=5), build(in_channels=5)
    nn.init.normal_(stem(one)[1].weight)

    other.load_state_dict(one.state_dict())

    assert torch.equal(stem(other)[1].weight, stem(one)[1].weight)
    assert not logged


@pytest.mark.parametrize(('source', 'target'), [(1, 3), (4, 3), (4, 1)])
def test_only_rgb_weights_are_adapted(build, source, target):
    mismatch = load_state_dict(
        build(in_channels=target), build(in_channels=source).state_dict()
    )

    assert len(mismatch) == 1
    assert f'{stem(build())[0]}.weight' in str(mismatch)


def test_weights_of_another_width_are_not_adapted(build, logged):
    wide = build(arch=dict(base='nano', embed_dims=(64, 64, 128, 256)))

    mismatch = load_state_dict(build(in_channels=1), wide.state_dict())

    assert f'{stem(wide)[0]}.weight' in ' '.join(mismatch.size_mismatch)
    assert not logged


@pytest.mark.parametrize(('in_channels', 'given'), [(3, 1), (3, 4), (1, 3), (4, 3)])
def test_images_with_other_channels_are_refused(build, in_channels, given):
    message = (
        f'x must be images of in_channels={in_channels} channels; got {given}, shape '
        f'(2, {given}, 64, 64). Set in_channels={given} of the backbone, or load '
        f'images of {in_channels} channels.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build(in_channels=in_channels)(torch.zeros(2, given, 64, 64))


@pytest.mark.parametrize('value', [0, -1, 1.0, None, True])
def test_in_channels_out_of_range_are_refused(build, value):
    with pytest.raises(
        ValueError, match=f'in_channels must be an integer of at least 1; got {value}'
    ):
        build(in_channels=value)
