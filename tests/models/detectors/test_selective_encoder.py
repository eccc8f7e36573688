import pytest
import torch
from torch import nn

from mmsparse.models.detectors import SelectiveEncoder
from mmsparse.ops.pyramid import level_centers
from mmsparse.ops.tokens import gather_tokens, select_tokens

SIZES = ((5, 7), (3, 4))
TOKENS = 5 * 7 + 3 * 4
LAYER = dict(
    self_attn_cfg=dict(embed_dims=8, num_heads=2, num_levels=2, dropout=0.0),
    ffn_cfg=dict(embed_dims=8, feedforward_channels=12, ffn_drop=0.0),
)


def build(**options):
    module = SelectiveEncoder(num_layers=3, layer_cfg=LAYER, **options)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=float('norm' in name), std=0.3)
    return module


@pytest.fixture
def given():
    """Inputs of an encoder; two thirds of the second image are padding."""
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, 16:] = True
    scores, counts = torch.randn(2, TOKENS), (~padding).sum(1)
    return dict(
        query=torch.randn(2, TOKENS, 8, requires_grad=True),
        query_pos=torch.randn(2, TOKENS, 8, requires_grad=True),
        key_padding_mask=padding,
        centers=level_centers(SIZES, torch.ones(2, 2, 2)),
        valid_ratios=torch.ones(2, 2, 2),
        selection=select_tokens(scores, padding, counts, 0.4, (1.0,)),
        spatial_shapes=torch.tensor(SIZES),
        level_sizes=SIZES,
    )


def naive_encoder(module, query, query_pos, centers, valid_ratios, selection, **levels):
    """Write the tokens that each image keeps after every layer, one by one."""
    rows, memory, states = selection.rows, query, []
    kept = gather_tokens(query, rows)
    points = gather_tokens(centers, rows)[:, :, None] * valid_ratios[:, None]
    for layer in module.layers:
        kept = layer(
            kept,
            gather_tokens(query_pos, rows),
            value=memory,
            reference_points=points,
            **levels,
        )
        states.append(kept)
        memory = memory.clone()
        for image, count in enumerate((19, 7)):
            memory[image, rows[image, :count]] = kept[image, :count]
    return memory, states


def test_values_and_gradients_equal_a_loop_over_images(given):
    module = build().eval()

    memory, states = module(**given)
    expected, expected_states = naive_encoder(module, **given)

    torch.testing.assert_close((memory, states), (expected, expected_states))
    leaves = [given['query'], given['query_pos'], *module.parameters()]
    cotangents = [torch.randn_like(x) for x in (memory, *states)]
    torch.testing.assert_close(
        torch.autograd.grad((memory, *states), leaves, cotangents),
        torch.autograd.grad((expected, *expected_states), leaves, cotangents),
    )


def test_other_tokens_keep_their_values(given):
    memory, _ = build()(**given)

    changed = (memory != given['query']).any(-1)
    assert changed.sum(1).tolist() == [19, 7]
    assert not changed[given['key_padding_mask']].any()


def test_checkpointed_layers_have_the_same_gradients(given):
    plain, checkpointed = build(), build(num_cp=2)
    checkpointed.load_state_dict(plain.state_dict())

    grads = [
        torch.autograd.grad(
            module.train()(**given)[0].square().sum(), [*module.parameters()]
        )
        for module in (plain, checkpointed)
    ]

    torch.testing.assert_close(*grads)
