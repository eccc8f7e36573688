"""Neighborhood attention by FlexAttention: its values on a CPU, where it is slow."""

import pytest
import torch

from mmsparse.ops import neighborhood_attention, neighborhood_flex

pytestmark = pytest.mark.skipif(
    neighborhood_flex.VERSION < (2, 5), reason='torch has no FlexAttention'
)
ANY_HEAD_DIM = pytest.mark.skipif(
    neighborhood_flex.VERSION < (2, 7), reason='torch needs powers of 2 channels'
)


def random_inputs(B, H, W, C, heads, kernel, dtype=torch.float64):
    span = 2 * kernel - 1
    table = torch.randn(heads, span, span, dtype=dtype, requires_grad=True)
    return (*(torch.randn(B, H, W, C, dtype=dtype) for _ in range(3)), table)


@pytest.mark.parametrize(
    'sizes',
    [
        (2, 9, 7, 8, 2, 5),
        (1, 5, 5, 4, 1, 5),
        (1, 11, 13, 4, 1, 3),
        pytest.param((2, 9, 7, 6, 2, 5), marks=ANY_HEAD_DIM),
    ],
    ids=['rectangle', 'size-of-the-kernel', 'several-blocks-of-the-mask', 'odd-heads'],
)
def test_equals_the_reference(sizes):
    tensors = random_inputs(*sizes)

    with torch.no_grad():
        actual = neighborhood_attention(*tensors, backend='flex')

    torch.testing.assert_close(
        actual, neighborhood_attention(*tensors, backend='reference')
    )


def test_half_precision_stays_near_single():
    *tensors, table = random_inputs(1, 5, 6, 8, 2, 3, torch.float32)
    half = [x.bfloat16() for x in tensors]

    with torch.no_grad():
        rounded = neighborhood_attention(*half, table, backend='flex')

    assert rounded.dtype == torch.bfloat16
    exact = neighborhood_attention(*tensors, table)
    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def test_the_mask_skips_blocks_without_neighbors():
    mask = neighborhood_flex._block_mask(40, 40, 7, torch.device('cpu'))

    assert mask.sparsity() > 50  # percent of the blocks


def test_gradients_on_a_cpu_are_rejected():
    with pytest.raises(
        ValueError, match='gradients on GPUs only, and .* got tensors on'
    ):
        neighborhood_attention(*random_inputs(1, 3, 3, 4, 1, 3), backend='flex')


@pytest.mark.parametrize(
    ('before', 'head_dim', 'trained'),
    [((2, 5), 16, False), ((2, 6), 16, True), ((2, 7), 24, False)],
    ids=str,
)
def test_it_is_not_available_in_older_versions(monkeypatch, before, head_dim, trained):
    *_, q, table = random_inputs(1, 3, 3, head_dim, 1, 3)
    table.requires_grad_(trained)
    monkeypatch.setattr(neighborhood_flex, 'VERSION', before)
    assert neighborhood_flex.is_available(q, table)

    monkeypatch.setattr(neighborhood_flex, 'VERSION', (2, before[1] - 1))

    assert not neighborhood_flex.is_available(q, table)


def test_channels_that_are_no_power_of_2_need_torch_2_7(monkeypatch):
    monkeypatch.setattr(neighborhood_flex, 'VERSION', (2, 6))

    with (
        torch.no_grad(),
        pytest.raises(ValueError, match='power of 2; got tensors on cpu, 3 channels'),
    ):
        neighborhood_attention(*random_inputs(1, 5, 5, 3, 1, 3), backend='flex')


def test_it_is_not_available_for_few_channels():
    *_, q, table = random_inputs(1, 3, 3, 15, 1, 3)

    assert not neighborhood_flex.is_available(q, table)
