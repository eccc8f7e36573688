import pytest
import torch

from mmsparse.ops.tokens import (
    class_score,
    foreground_score,
    gather_tokens,
    kept_by_layer,
    layer_counts,
    logit_product,
    probability_product,
    scatter_tokens,
    select_tokens,
    selected_counts,
)

CASCADE = (1.0, 0.8, 0.2)


@pytest.fixture
def scores():
    return torch.randn(2, 40)


@pytest.fixture
def padding():
    """The second image has 20 tokens, and the best scores in its padding."""
    padding = torch.zeros(2, 40, dtype=torch.bool)
    padding[1, 20:] = True
    return padding


def select(scores, padding, ratio=0.5, cascade=CASCADE, **options):
    valid = torch.full(scores.shape[:1], scores.shape[1])
    if padding is not None:
        valid = (~padding).sum(1)
    return select_tokens(scores, padding, valid, ratio, cascade, **options)


def test_every_layer_keeps_the_best_tokens(scores):
    selection = select(scores, None)

    assert selection.kept == (21, 16, 4)
    for kept in selection.kept:
        expected = scores.topk(kept)
        assert torch.equal(selection.rows[:, :kept], expected.indices)
        assert torch.equal(selection.scores[:, :kept], expected.values)
    assert selection.eligible == selection.written == (None, None, None)


def test_the_largest_foreground_counts_for_all_images(scores, padding):
    selection = select(scores, padding)

    assert selection.kept == (21, 16, 4)
    # Its foreground are 11 tokens: no more of the rows are written back.
    counts = [
        None if mask is None else mask.sum(1).tolist() for mask in selection.written
    ]
    assert counts == [[21, 11], [16, 11], None]
    # Of its 20 tokens, 21 rows of the first layer are one too many.
    assert selection.eligible[0].sum(1).tolist() == [21, 20]
    assert selection.eligible[1:] == (None, None)


def test_every_image_may_keep_separate_numbers(scores, padding):
    selection = select(scores, padding, per_image=True)

    assert selection.kept == (21, 16, 4)
    for masks in (selection.eligible, selection.written):
        assert [mask.sum(1).tolist() for mask in masks] == [[21, 11], [16, 8], [4, 2]]


@pytest.mark.parametrize('per_image', [False, True])
@pytest.mark.parametrize('ratio', [0.3, 1.0])
def test_padding_never_counts(scores, padding, ratio, per_image):
    scores[padding] = 1e4

    selection = select(scores, padding, ratio, (1.0,), per_image=per_image)

    chosen = padding.gather(1, selection.rows)
    for mask in (selection.eligible[0], selection.written[0]):
        if mask is not None:
            assert not (chosen & mask).any()
    assert not chosen[:, : int(20 * ratio)].any()


def test_all_tokens_are_kept_at_a_ratio_of_1(scores):
    assert select(scores, None, 1.0, (1.0, 1.0)).kept == (40, 40)


@pytest.mark.parametrize('share', [0.1, 0.2, 0.7, 0.9])
def test_counts_are_rounded_down_in_float32(share):
    counts = torch.arange(1, 60_000)

    expected = (counts.float() * torch.tensor(share, dtype=torch.float32)).int()

    assert torch.equal(layer_counts(counts, share), expected)
    assert torch.equal(selected_counts(counts, share), (expected + 1).minimum(counts))


@pytest.mark.parametrize('per_image', [False, True])
def test_a_layer_without_tokens_is_rejected(per_image):
    with pytest.raises(ValueError, match=r'keep_ratio=0.1 .* none of the \[5\] tokens'):
        select(torch.zeros(1, 5), None, 0.1, (1.0, 0.5), per_image=per_image)


def test_one_image_without_tokens_is_rejected_where_each_counts(scores, padding):
    padding[1, 2:] = True

    select(scores, padding)
    with pytest.raises(
        ValueError, match=r'keep none of the \[40, 2\] tokens in some layer'
    ):
        select(scores, padding, per_image=True)


def test_object_scores_are_products_with_the_best_class():
    classes = torch.tensor([[[-3.0, -2.0], [1.0, 4.0]]])
    foreground = torch.tensor([[-5.0, 0.5]])

    assert logit_product(classes, foreground).tolist() == [[10.0, 2.0]]
    torch.testing.assert_close(
        probability_product(classes, foreground),
        torch.tensor([[-2.0, 4.0]]).sigmoid() * foreground.sigmoid(),
    )
    assert class_score(classes, foreground).tolist() == [[-2.0, 4.0]]
    assert foreground_score(classes, foreground).tolist() == [[-5.0, 0.5]]


def test_tokens_are_gathered_and_scattered_by_image():
    x = torch.randn(3, 7, 2, dtype=torch.double, requires_grad=True)
    values = torch.randn(3, 4, 2, dtype=torch.double, requires_grad=True)
    rows = torch.stack([torch.randperm(7)[:4] for _ in range(3)])

    gathered, scattered = gather_tokens(x, rows), scatter_tokens(x, rows, values)

    expected = x.detach().clone()
    for b in range(3):
        assert torch.equal(gathered[b], x[b, rows[b]])
        expected[b, rows[b]] = values[b].detach()
    assert torch.equal(scattered, expected)
    torch.autograd.gradcheck(lambda x: gather_tokens(x, rows), x)
    torch.autograd.gradcheck(lambda x, v: scatter_tokens(x, rows, v), (x, values))


def test_kept_tokens_are_marked_by_layer(scores, padding):
    selection = select(scores, padding, per_image=True)

    kept = kept_by_layer(selection, 40)

    assert kept.sum(-1).tolist() == [[21, 16, 4], [11, 8, 2]]
    for image_scores, marks, valid in zip(scores, kept, (40, 20), strict=True):
        order = image_scores[:valid].argsort(descending=True)
        for layer in marks:
            count = int(layer.sum())
            assert layer[order[:count]].all()
