import pytest
import torch
from torch.nn import functional as F

from mmsparse.models.detectors import (
    DETRPanopticHead,
    MaskNetwork,
    QueryAttentionMap,
)

WIDTHS = (3, 5, 7)  # fine to coarse
SIZES = ((19, 23), (10, 12), (7, 5))
SHAPES = [(width, *size) for width, size in zip(WIDTHS, SIZES, strict=True)]
COARSE = (3, 4)


def test_the_attention_map_is_one_softmax_over_heads_and_valid_positions():
    attention = QueryAttentionMap(6, 8, num_heads=2)
    queries, memory = torch.randn(5, 6), torch.randn(6, 3, 4)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, 3], mask[2] = True, True

    weights = attention(queries, memory, mask)

    assert weights.shape == (5, 2, 3, 4)
    q, k = attention.q_linear(queries), attention.k_linear(memory.permute(1, 2, 0))
    for i in range(5):
        logits = torch.full((2, 3, 4), float('-inf'))
        for head in range(2):
            for y in range(2):
                for x in range(3):
                    own = slice(4 * head, 4 * head + 4)
                    logits[head, y, x] = q[i, own] @ k[y, x, own] / 2
        expected = logits.flatten().softmax(0).view_as(logits)
        torch.testing.assert_close(weights[i], expected)
    assert weights[:, :, mask].eq(0).all()
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.ones(5))


def network(**settings):
    return MaskNetwork(12, 4, WIDTHS, 128, **settings).double()


def inputs(queries=3):
    return [
        torch.randn(queries, 4, *COARSE),
        torch.randn(12, *COARSE),
        *(torch.randn(*x) for x in SHAPES),
    ]


def plain(network, attention, src, *feats):
    """The network as in the paper: every query with its own copy of everything."""
    queries = len(attention)
    x = torch.cat([src.expand(queries, -1, -1, -1), attention], dim=1)
    for i, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        if i > 1:
            finer = network.adapters[i - 2](feats[-i + 1].expand(queries, -1, -1, -1))
            x = finer + F.interpolate(x, finer.shape[-2:])
        x = norm(conv(x)).relu()
    return network.out_conv(x)[:, 0]


@pytest.mark.parametrize(
    'settings', [{}, dict(chunk_size=2), dict(chunk_size=2, with_cp=True)], ids=str
)
def test_the_shared_and_chunked_network_equals_the_plain_one(settings):
    masks = network(**settings)
    first = [x.double().requires_grad_() for x in inputs()]
    second = [x.detach().clone().requires_grad_() for x in first]

    outputs = [masks(*first[:2], first[2:]), plain(masks, *second)]

    torch.testing.assert_close(*outputs)
    assert outputs[0].shape == (3, *SIZES[0])
    cotangent = torch.randn_like(outputs[0])
    gradients = [
        torch.autograd.grad((out * cotangent).sum(), [*leaves, *masks.parameters()])
        for out, leaves in zip(outputs, (first, second), strict=True)
    ]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


def head(**settings):
    return DETRPanopticHead(128, feat_channels=WIDTHS, **settings)


def head_inputs(batch=2):
    memory, src = torch.randn(2, batch, 128, *COARSE)
    feats = [torch.randn(batch, *x) for x in SHAPES]
    return memory, None, src, feats


def test_masks_do_not_depend_on_other_queries_and_images():
    model, (memory, mask, src, feats) = head(), head_inputs()
    queries = [torch.randn(4, 128), torch.randn(2, 128)]

    both = model(queries, memory, mask, src, feats)

    assert [len(x) for x in both] == [4, 2]
    one = model(
        [queries[0][2:3]], memory[:1], mask, src[:1], [feat[:1] for feat in feats]
    )
    torch.testing.assert_close(one[0], both[0][2:3], rtol=1e-4, atol=1e-5)


def test_the_losses_are_those_of_the_paper():
    logits = [torch.randn(2, 5, 6), torch.randn(1, 5, 6)]
    targets = [torch.rand(2, 19, 23) > 0.5, torch.rand(1, 19, 23) > 0.7]

    losses = head().loss(logits, targets, num_objects=5)

    focal, dice = 0.0, 0.0
    for x, target in zip(torch.cat(logits), torch.cat(targets).float(), strict=True):
        x = F.interpolate(x[None, None], (19, 23), mode='bilinear')[0, 0]
        p = x.sigmoid()
        right = p * target + (1 - p) * (1 - target)
        alpha = 0.25 * target + 0.75 * (1 - target)
        focal += (-alpha * (1 - right) ** 2 * right.log()).mean() / 5
        overlap = 2 * (p * target).sum() + 1
        dice += (1 - overlap / (p.sum() + target.sum() + 1)) / 5
    torch.testing.assert_close(losses['loss_mask'], focal)
    torch.testing.assert_close(losses['loss_dice'], dice)


@pytest.mark.parametrize('with_cp', [False, True])
def test_without_objects_the_losses_are_zero_and_have_gradients(with_cp):
    model, (memory, mask, src, feats) = head(with_cp=with_cp), head_inputs()
    queries = [torch.randn(0, 128, requires_grad=True) for _ in range(2)]

    masks = model(queries, memory, mask, src, feats)
    losses = model.loss(masks, [torch.zeros(0, 19, 23, dtype=torch.bool)] * 2, 1)
    sum(losses.values()).backward()

    assert [x.item() for x in losses.values()] == [0, 0]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.eq(0).all(), name


def test_weights_start_as_in_the_paper():
    model = head()

    model.init_weights()

    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            assert parameter.eq(0).all(), name
        elif parameter.ndim > 1:
            fan_in = parameter[0].numel()
            fan_out = len(parameter) if parameter.ndim == 2 else fan_in
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, name


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(embed_dims=192), r'channels, by default embed_dims, .* 128: .*got 192'),
        (dict(embed_dims=256, channels=64), r'multiple of 128: .*; got 64\.'),
        (dict(num_heads=5), r'embed_dims must be divisible .*=256 and num_heads=5'),
        (dict(num_heads=4), r'embed_dims \+ num_heads must be a multiple of 8.*260'),
        (dict(feat_channels=(256, 512)), r'feat_channels .* 3 .*got \(256, 512\)\.'),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DETRPanopticHead(**settings)
