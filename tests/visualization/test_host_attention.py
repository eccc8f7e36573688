"""Attention maps of other libraries' layers reproduce the output of these layers."""

import pytest
import timm
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention as McvAttention
from mmdet.models import PyramidVisionTransformer
from mmdet.models.backbones.pvt import SpatialReductionAttention
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils.attention import MultiheadAttention, WindowMSAV2
from mmpretrain.models.utils.attention import ShiftWindowMSA as PretrainWindows
from mmseg.models.backbones.mit import EfficientMultiheadAttention
from timm.layers.attention import Attention
from timm.models.pvt_v2 import Attention as ReducedAttention
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from mmsparse.visualization import record
from mmsparse.visualization.host_attention import find_adapter, name_arguments

C, SIZE, BATCH = 8, (7, 9), 2  # windows of 4 do not divide the feature map


def window_values(layer, x):
    """Return the values of the padded feature map, (B, T, C)."""
    padded = nn.functional.pad(x, (0, 3, 0, 1))  # to 8x12
    return layer.qkv(padded.flatten(2).transpose(1, 2)).chunk(3, dim=-1)[2]


def torch_values(layer, tokens):
    weight, bias = layer.in_proj_weight[-C:], layer.in_proj_bias[-C:]
    return nn.functional.linear(tokens, weight, bias)


def tokens_of(x):
    return x.flatten(2).transpose(1, 2)


def windows(cls, **options):
    layer = cls(C, num_heads=2, window_size=4, **options)
    x = torch.randn(BATCH, C, *SIZE)
    call = (tokens_of(x), SIZE)
    values = window_values(layer.w_msa, x)
    return layer, call, values, layer.w_msa.proj, layer(*call)


def timm_windows():
    block = SwinTransformerBlock(C, SIZE, num_heads=2, window_size=4, shift_size=2)
    x = torch.randn(BATCH, *SIZE, C)
    normed = block.norm1(x)
    values = window_values(block.attn, normed.permute(0, 3, 1, 2))
    out = block._attn(normed).flatten(1, 2)
    return block, (x,), values, block.attn.proj, out


def plain(cls, **options):
    layer = cls(C, num_heads=2, **options)
    tokens = torch.randn(BATCH, 63, C)
    values = layer.qkv(tokens).chunk(3, dim=-1)[2]
    return layer, (tokens,), values, layer.proj, layer(tokens)


def reduced(cls, ratio):
    layer = cls(C, num_heads=2, sr_ratio=ratio, qkv_bias=True)
    tokens = torch.randn(BATCH, 63, C)
    keys = tokens
    if ratio > 1:
        x = tokens.transpose(1, 2).unflatten(2, SIZE)
        keys = layer.norm(tokens_of(layer.sr(x)))
    out = layer(tokens, SIZE, identity=torch.zeros_like(tokens))
    values = torch_values(layer.attn, keys)
    return layer, (tokens, SIZE), values, layer.attn.out_proj, out


def timm_reduced(**options):
    layer = ReducedAttention(C, num_heads=2, **options)
    tokens = torch.randn(BATCH, 63, C)
    x = tokens.transpose(1, 2).unflatten(2, SIZE)
    if layer.pool is not None:
        keys = layer.act(layer.norm(tokens_of(layer.sr(layer.pool(x)))))
    else:
        keys = layer.norm(tokens_of(layer.sr(x))) if layer.sr else tokens
    values = layer.kv(keys).chunk(2, dim=-1)[1]
    return layer, (tokens, SIZE), values, layer.proj, layer(tokens, SIZE)


def with_positions():
    layer = McvAttention(C, 2, batch_first=True).eval()
    tokens, positions = torch.randn(2, BATCH, 63, C)
    padding = torch.zeros(BATCH, 63, dtype=torch.bool)
    padding[1, 40:] = True
    zero = torch.zeros_like(tokens)
    call = (tokens, None, None, zero, positions, None, None, padding)
    values = torch_values(layer.attn, tokens)
    return layer, call, values, layer.attn.out_proj, layer(*call)


CASES = {
    'swin of mmdet': lambda: windows(ShiftWindowMSA),
    'shifted swin of mmdet': lambda: windows(ShiftWindowMSA, shift_size=2),
    'shifted swin of mmpretrain': lambda: windows(PretrainWindows, shift_size=1),
    'shifted swin of timm': timm_windows,
    'vit of mmpretrain': lambda: plain(MultiheadAttention),
    'vit of timm': lambda: plain(Attention, qk_norm=True, norm_layer=nn.LayerNorm),
    'pvt of mmdet': lambda: reduced(SpatialReductionAttention, 2),
    'pvt of mmdet, not reduced': lambda: reduced(SpatialReductionAttention, 1),
    'mit of mmseg': lambda: reduced(EfficientMultiheadAttention, 3),
    'pvt of timm': lambda: timm_reduced(sr_ratio=2),
    'pvt of timm, not reduced': lambda: timm_reduced(),
    'linear pvt of timm': lambda: timm_reduced(linear_attn=True),
    'detr of mmdet': with_positions,
}


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_weights_times_values_are_the_output(name):
    torch.manual_seed(0)
    layer, call, values, project, expected = CASES[name]()
    for table in layer.parameters():
        assert table.isfinite().all()

    adapted = find_adapter(layer)(layer, name_arguments(layer, call, {}), SIZE)
    (found,) = adapted.attention_maps(adapted.x, torch.arange(63))

    by_head = values.unflatten(-1, (2, -1))  # (B, T, heads, D)
    batch = torch.arange(BATCH)[:, None, None]
    of_keys = by_head[batch, found.index]  # (B, n, M, heads, D)
    out = torch.einsum('bhnm,bnmhd->bnhd', found.weights, of_keys).flatten(2)
    torch.testing.assert_close(project(out), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(BATCH, 2, 63))


@torch.no_grad()
def test_keys_are_where_the_tokens_of_a_window_are():
    layer = ShiftWindowMSA(C, 2, window_size=4, shift_size=2)
    call = dict(query=torch.randn(1, 63, C), hw_shape=SIZE)

    (found,) = find_adapter(layer)(layer, call, SIZE).attention_maps(
        torch.randn(1, C, *SIZE), torch.tensor([3 * 9 + 4])
    )

    keys = found.locations()[0, 0]
    assert keys.amin(0).tolist() == [2.5, 2.5]  # windows start at row and column 2
    assert keys.amax(0).tolist() == [5.5, 5.5]


@torch.no_grad()
def test_class_tokens_are_left_out():
    layer = MultiheadAttention(C, num_heads=2)
    tokens = torch.randn(BATCH, 64, C)
    q, k, _ = (
        x.unflatten(-1, (2, -1)).transpose(1, 2) for x in layer.qkv(tokens).chunk(3, -1)
    )
    weights = ((q * 4**-0.5) @ k.transpose(-2, -1)).softmax(-1)[:, :, 1:, 1:]

    adapted = find_adapter(layer)(layer, dict(x=tokens), SIZE)
    (found,) = adapted.attention_maps(adapted.x, torch.arange(63))

    torch.testing.assert_close(found.weights, weights / weights.sum(-1, keepdim=True))


def test_swin_v2_has_no_adapter():
    assert find_adapter(PretrainWindows(C, 2, 4, window_msa=WindowMSAV2)) is None


def test_tokens_without_a_grid_raise():
    with pytest.raises(ValueError, match='last convolution, 9x9; got 63'):
        find_adapter(Attention(C, 2))(
            Attention(C, 2), dict(x=torch.ones(1, 63, C)), (9, 9)
        )


@pytest.mark.parametrize('library', ['mmpretrain', 'timm'])
def test_layers_of_a_vision_transformer_are_recorded(library):
    if library == 'timm':
        model = timm.create_model('vit_tiny_patch16_224', img_size=(64, 48), depth=2)
    else:
        arch = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=8)
        model = VisionTransformer(arch, img_size=(64, 48), patch_size=16)

    model.eval()
    with record(model) as recording, torch.no_grad():
        model(torch.randn(1, 3, 64, 48))

    assert [layer.title for layer in recording.layers] == ['block 1', 'block 2']
    for layer in recording.layers:
        assert layer.x.shape[-2:] == (4, 3)
        assert layer.stride == 16
        (found,) = layer.layer.attention_maps(layer.x, torch.tensor([5]))
        assert found.weights.shape[-1] == 12
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_blocks_of_a_pvt_are_counted_without_its_position_embedding():
    model = PyramidVisionTransformer(
        embed_dims=8, num_stages=1, num_layers=[2], num_heads=[1], patch_sizes=[4],
        strides=[4], paddings=[0], sr_ratios=[2], mlp_ratios=[1], out_indices=[0],
    )  # fmt: skip

    with record(model) as recording, torch.no_grad():
        model(torch.randn(1, 3, 32, 48))

    titles = [layer.title for layer in recording.layers]
    assert titles == ['stage 1, block 1', 'stage 1, block 2']
    assert recording.layers[0].x.shape == (1, 8, 8, 12)
