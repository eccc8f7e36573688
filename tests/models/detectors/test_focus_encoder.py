import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmsparse.analysis.flops import sampling_flops
from mmsparse.models.detectors import (
    FocusEncoder,
    FocusEncoderLayer,
    ForegroundTokenSelector,
)
from mmsparse.ops.pyramid import level_centers
from mmsparse.ops.tokens import gather_tokens, select_tokens

SIZES = ((6, 8), (3, 4))
TOKENS = 6 * 8 + 3 * 4
LAYER = dict(
    self_attn_cfg=dict(embed_dims=8, num_heads=2, num_levels=2, dropout=0.0),
    ffn_cfg=dict(embed_dims=8, feedforward_channels=12, ffn_drop=0.0),
)
CASCADE = (1.0, 0.8, 0.4)
# Published at 800x1333: mean keep ratio, keep_ratio, GMACs.
PUBLISHED = [
    (0.1, 1 / 6, 30.0),
    (0.2, 1 / 3, 46.7),
    (0.3, 1 / 2, 63.4),
    (0.4, 2 / 3, 80.2),
    (0.5, 5 / 6, 96.9),
]


def random_weights(module):
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=float('norm' in name), std=0.3)
    return module


def encoder(**options):
    cfg = dict(num_layers=3, layer_cfg=LAYER, num_object_tokens=5)
    return random_weights(FocusEncoder(**{**cfg, **options}))


@pytest.fixture
def given():
    """Inputs of an encoder; the right half of the second image is padding."""
    ratios = torch.ones(2, 2, 2)
    ratios[1, :, 0] = 0.5
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    for start, (height, width) in zip((0, 48), SIZES, strict=True):
        level = padding[1, start : start + height * width].view(height, width)
        level[:, width // 2 :] = True
    return dict(
        query=torch.randn(2, TOKENS, 8, requires_grad=True),
        query_pos=torch.randn(2, TOKENS, 8, requires_grad=True),
        key_padding_mask=padding,
        centers=level_centers(SIZES, ratios),
        valid_ratios=ratios,
        class_head=nn.Linear(8, 3),
        spatial_shapes=torch.tensor(SIZES),
        level_sizes=SIZES,
    )


def selection(given, per_image=False):
    padding = given['key_padding_mask']
    scores = torch.randn(2, TOKENS)
    counts = (~padding).sum(1)
    return select_tokens(scores, padding, counts, 0.6, CASCADE, per_image)


def naive_encoder(encoder, given, chosen, value_source):
    """Gather, update and scatter in every layer, image by image."""
    tokens = given['query']
    for i, layer in enumerate(encoder.layers):
        rows = chosen.rows[:, : chosen.kept[i]]
        kept = gather_tokens(tokens, rows)
        scores = given['class_head'](kept).amax(-1) * chosen.scores[:, : rows.shape[1]]
        centers = gather_tokens(given['centers'], rows)
        out = layer(
            kept,
            gather_tokens(given['query_pos'], rows),
            scores.detach(),
            eligible=chosen.eligible[i],
            value=given['query'] if value_source == 'input' else tokens,
            key_padding_mask=given['key_padding_mask'],
            reference_points=centers[:, :, None] * given['valid_ratios'][:, None],
            spatial_shapes=given['spatial_shapes'],
            level_sizes=SIZES,
        )
        tokens = tokens.clone()
        for b in range(len(tokens)):
            written = chosen.written[i]
            mask = slice(None) if written is None else written[b]
            tokens[b, rows[b][mask]] = out[b][mask]
    return tokens


@pytest.mark.parametrize('per_image', [False, True])
@pytest.mark.parametrize('value_source', ['input', 'current'])
def test_one_gather_and_one_scatter_equal_those_of_every_layer(
    given, value_source, per_image
):
    module = encoder(value_source=value_source).eval()
    chosen = selection(given, per_image)

    actual = module(**given, selection=chosen)
    expected = naive_encoder(module, given, chosen, value_source)

    torch.testing.assert_close(actual, expected)
    leaves = [given['query'], given['query_pos'], *module.parameters()]
    cotangent = torch.randn_like(actual)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, cotangent),
        torch.autograd.grad(expected, leaves, cotangent),
    )


def test_input_and_current_values_differ(given):
    chosen = selection(given)
    sources = [encoder(value_source=x).eval() for x in ('input', 'current')]
    sources[1].load_state_dict(sources[0].state_dict())

    outs = [module(**given, selection=chosen) for module in sources]

    assert (outs[0] - outs[1]).abs().max() > 1e-2


def test_object_scores_by_logits_and_by_probabilities_differ(given):
    nn.init.constant_(given['class_head'].bias, -4.0)  # few tokens are objects
    chosen = selection(given)
    scores = [encoder(object_score=x).eval() for x in ('logit', 'prob')]
    scores[1].load_state_dict(scores[0].state_dict())

    outs = [module(**given, selection=chosen) for module in scores]

    assert (outs[0] - outs[1]).abs().max() > 1e-2


def test_the_class_head_gets_no_gradient(given):
    encoder()(**given, selection=selection(given)).sum().backward()

    assert all(x.grad is None for x in given['class_head'].parameters())


def test_only_object_tokens_attend_to_each_other():
    layer = random_weights(FocusEncoderLayer(3, **LAYER)).eval()
    given = dict(
        query_pos=torch.randn(1, 7, 8),
        object_scores=torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.0]]),
        value=torch.randn(1, TOKENS, 8),
        reference_points=torch.rand(1, 7, 2, 2),
        spatial_shapes=torch.tensor(SIZES),
        level_sizes=SIZES,
    )
    query = torch.randn(1, 7, 8, requires_grad=True)

    seen = torch.autograd.functional.jacobian(lambda x: layer(x, **given)[0], query)

    sees = seen.abs().amax((1, 2, 4)) > 0  # (7, 7): output depends on input
    expected = torch.eye(7, dtype=torch.bool)
    objects = torch.tensor([1, 3, 5])
    expected[objects[:, None], objects] = True
    assert torch.equal(sees, expected)


def test_ineligible_tokens_change_no_object_token(given):
    """Of five object tokens two are eligible; the other three are masked."""
    layer = random_weights(FocusEncoderLayer(5, **LAYER)).eval()
    query, scores = torch.randn(1, 9, 8), torch.rand(1, 9)
    eligible = torch.zeros(1, 9, dtype=torch.bool)
    eligible[0, :2] = True
    others = query + torch.randn(1, 9, 8) * ~eligible[..., None]
    attention = dict(
        value=torch.randn(1, TOKENS, 8),
        reference_points=torch.rand(1, 9, 2, 2),
        spatial_shapes=torch.tensor(SIZES),
        level_sizes=SIZES,
    )

    outs = [
        layer(x, torch.zeros_like(x), scores, eligible=eligible, **attention)
        for x in (query, others)
    ]

    torch.testing.assert_close(outs[0][:, :2], outs[1][:, :2])


def test_checkpointed_layers_have_the_same_gradients(given):
    chosen = selection(given)
    plain, checkpointed = encoder(), encoder(num_cp=2)
    checkpointed.load_state_dict(plain.state_dict())

    grads = []
    for module in (plain, checkpointed):
        out = module.train()(**given, selection=chosen)
        grads.append(torch.autograd.grad(out.square().sum(), [*module.parameters()]))

    torch.testing.assert_close(*grads)


def test_the_encoder_compiles_into_one_graph(given):
    torch.compiler.reset()
    module, chosen = encoder(), selection(given)

    compiled = torch.compile(module, fullgraph=True, backend='eager')

    torch.testing.assert_close(
        compiled(**given, selection=chosen), module(**given, selection=chosen)
    )


@pytest.mark.parametrize(('keep', 'ratio', 'published'), PUBLISHED)
def test_macs_equal_the_published_ones(keep, ratio, published):
    """Count the encoder and the token selection on an image of 800x1333."""
    sizes = ((100, 167), (50, 84), (25, 42), (13, 21))
    tokens = sum(height * width for height, width in sizes)
    cfg = dict(
        self_attn_cfg=dict(embed_dims=256, num_levels=4),
        ffn_cfg=dict(embed_dims=256, feedforward_channels=2048),
    )
    with torch.device('meta'):
        module = FocusEncoder(num_layers=6, layer_cfg=cfg).eval()
        selector = ForegroundTokenSelector(256, 4)
        projection, head = nn.Linear(256, 256), nn.Linear(256, 80)
        x = torch.empty(1, tokens, 256)
        ratios, shapes = torch.empty(1, 4, 2), torch.empty(4, 2)

    formulas = {torch.ops.aten.grid_sampler_2d: sampling_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, torch.no_grad():
        scores = selector(projection(x), sizes)
        cascade = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)
        chosen = select_tokens(scores, None, torch.tensor([tokens]), ratio, cascade)
        module(
            query=x,
            query_pos=x,
            key_padding_mask=None,
            centers=level_centers(sizes, ratios),
            valid_ratios=ratios,
            selection=chosen,
            class_head=head,
            spatial_shapes=shapes,
            level_sizes=sizes,
        )

    assert sum(chosen.kept) / (6 * tokens) == pytest.approx(keep, abs=1e-4)
    macs = counter.get_total_flops() / 2e9
    assert macs == pytest.approx(published, rel=0.01)
