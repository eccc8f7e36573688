import pytest
import torch
import torch.nn.functional as F

from mmsparse.models.detectors import AttentionMapLoss, DecoderAttentionMap
from mmsparse.models.detectors.attention_map_loss import kept_attention
from mmsparse.ops.tokens import select_tokens

SIZES = ((4, 5), (2, 3))
TOKENS = 26


@pytest.fixture
def padding():
    """The second image has 12 tokens."""
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 12:] = True
    return padding


def selection(padding, ratio):
    return select_tokens(
        torch.randn(2, TOKENS), padding, (~padding).sum(1), ratio, (1.0,)
    )


@pytest.mark.parametrize('ratio', [0.3, 1.0])
def test_as_many_tokens_as_are_kept_are_positive_and_no_padding(padding, ratio):
    attention, chosen = torch.rand(2, TOKENS), selection(padding, ratio)

    targets = AttentionMapLoss.targets(attention, padding, chosen)

    counts = {0.3: [8, 4], 1.0: [26, 12]}[ratio]
    assert targets.sum(1).tolist() == counts
    assert not targets[padding].any()
    for image, count in enumerate(counts):
        own = attention[image].masked_fill(padding[image], -1)
        assert set(targets[image].nonzero()[:, 0].tolist()) == set(
            own.topk(count).indices.tolist()
        )


def test_padding_is_negative_with_the_least_logit_of_the_batch(padding):
    logits = torch.randn(2, TOKENS, requires_grad=True)
    attention, chosen = torch.rand(2, TOKENS), selection(padding, 0.3)

    loss = AttentionMapLoss(loss_weight=2.0)(logits, attention, padding, chosen)
    loss.backward()

    targets = AttentionMapLoss.targets(attention, padding, chosen).float()
    filled = logits.detach().clone()
    least = filled.argmin()
    filled[padding] = filled.min()
    filled.requires_grad_()
    expected = 2 * F.binary_cross_entropy_with_logits(filled, targets)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    gradient = filled.grad.masked_fill(padding, 0).flatten()
    gradient[least] += filled.grad[padding].sum()
    torch.testing.assert_close(logits.grad.flatten(), gradient)


def test_the_map_sums_up_layers_without_gradient():
    points = torch.rand(2, 2, 3, 1, 2, 4, 2, requires_grad=True)
    weights = torch.rand(2, 2, 3, 1, 2, 4)
    total, single = DecoderAttentionMap(SIZES), DecoderAttentionMap(SIZES)

    for layer in zip(points, weights, strict=True):
        total.add(*layer)
    single.add(
        points.transpose(0, 1).flatten(1, 2), weights.transpose(0, 1).flatten(1, 2)
    )

    assert not total.total.requires_grad
    torch.testing.assert_close(total.total, single.total)


def test_the_share_of_the_attention_on_kept_tokens():
    attention = torch.ones(1, TOKENS)
    attention[0, 20:] = 0  # the second level has none

    shares = kept_attention(attention, torch.tensor([[0, 1, 2, 3, 25]]), SIZES)

    torch.testing.assert_close(shares[:2, 0], torch.tensor([0.2, 0.2]))
    assert shares[2].isnan().all()
