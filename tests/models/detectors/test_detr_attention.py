import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from torch import nn

from mmsparse.models.detectors.detr_attention import (
    DeformableAttention,
    SelfAttention,
)

SIZES = ((5, 7), (3, 4))
TOKENS = 5 * 7 + 3 * 4


def pair(module, reference, **arguments):
    """Build a module of mmsparse and mmcv's with equal random weights."""
    modules = module(**arguments), reference(**arguments)
    for parameter in modules[0].parameters():
        nn.init.normal_(parameter, std=0.4)
    modules[1].load_state_dict(modules[0].state_dict())
    return modules


def assert_equal(modules, given, **more):
    """Compare values, and gradients of all inputs and weights."""
    leaves = {name: x for name, x in given.items() if x.is_floating_point()}
    for x in leaves.values():
        x.requires_grad_()
    actual, expected = modules[0](**given, **more), modules[1](**given)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    cotangent = torch.randn_like(actual)
    gradients = (
        torch.autograd.grad(out, [*leaves.values(), *module.parameters()], cotangent)
        for out, module in zip((actual, expected), modules, strict=True)
    )
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_dropout_is_not_kept_as_the_default_of_other_layers():
    sizes = dict(embed_dims=8, num_heads=2)
    MultiheadAttention(**sizes, dropout=0.1)  # changes mmcv's default
    assert MultiheadAttention(**sizes).dropout_layer.p == 0.1

    assert SelfAttention(**sizes, dropout=0.2).dropout_layer.p == 0.2
    assert SelfAttention(**sizes).dropout_layer.p == 0


@pytest.mark.parametrize('masks', [(), ('attn_mask',), ('key_padding_mask',)], ids=str)
def test_self_attention_equals_mmcvs(masks):
    modules = pair(
        SelfAttention, MultiheadAttention, embed_dims=8, num_heads=2, batch_first=True
    )
    given = dict(query=torch.randn(2, 6, 8), query_pos=torch.randn(2, 6, 8))
    if 'attn_mask' in masks:
        given['attn_mask'] = torch.eye(6).bool()
    if 'key_padding_mask' in masks:
        given['key_padding_mask'] = torch.rand(2, 6) < 0.4

    assert_equal(modules, given)


def test_self_attention_works_without_position_embedding():
    modules = pair(
        SelfAttention, MultiheadAttention, embed_dims=8, num_heads=2, batch_first=True
    )

    assert_equal(modules, dict(query=torch.randn(2, 6, 8)))


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('coordinates', [2, 4], ids=['points', 'boxes'])
def test_deformable_attention_equals_mmcvs(coordinates, padded):
    modules = pair(
        DeformableAttention,
        MultiScaleDeformableAttention,
        embed_dims=8,
        num_heads=2,
        num_levels=2,
        num_points=3,
        dropout=0.0,
        batch_first=True,
    )
    given = dict(
        query=torch.randn(2, 6, 8),
        query_pos=torch.randn(2, 6, 8),
        value=torch.randn(2, TOKENS, 8),
        reference_points=torch.rand(2, 6, 2, coordinates),
        spatial_shapes=torch.tensor(SIZES),
    )
    if padded:
        given['key_padding_mask'] = torch.rand(2, TOKENS) < 0.3

    assert_equal(modules, given, level_sizes=SIZES)
