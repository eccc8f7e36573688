import torch
import torch.nn.functional as F

from mmsparse.models.detectors import ForegroundTokenSelector

SIZES = ((6, 8), (3, 4), (2, 2))
TOKENS = 48 + 12 + 4


def score(selector, x):
    """Score one level, (B, n, C)."""
    x = selector.layer1(x)
    half = x.shape[-1] // 2
    mean = x[..., half:].mean(1, keepdim=True).expand(-1, x.shape[1], -1)
    return selector.layer2(torch.cat([x[..., :half], mean], -1))[..., 0]


def random_selector(**options):
    selector = ForegroundTokenSelector(8, 3, **options)
    for parameter in selector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return selector


def test_coarse_levels_scale_the_tokens_of_finer_ones():
    selector, x = random_selector(), torch.randn(2, TOKENS, 8)
    fine, middle, coarse = x.split([48, 12, 4], dim=1)

    top = score(selector, coarse)
    guide = F.interpolate(
        top.view(2, 1, 2, 2), (3, 4), mode='bilinear', align_corners=True
    )
    second = score(selector, middle * (1 + selector.alpha[0] * guide.view(2, 12, 1)))
    guide = F.interpolate(
        second.view(2, 1, 3, 4), (6, 8), mode='bilinear', align_corners=True
    )
    third = score(selector, fine * (1 + selector.alpha[1] * guide.view(2, 48, 1)))

    torch.testing.assert_close(selector(x, SIZES), torch.cat([third, second, top], 1))


def test_without_top_down_guidance_every_level_is_scored_alone():
    selector, x = random_selector(top_down=False), torch.randn(2, TOKENS, 8)
    levels = x.split([48, 12, 4], dim=1)

    expected = torch.cat([score(selector, level) for level in levels], 1)

    assert selector.alpha is None
    torch.testing.assert_close(selector(x, SIZES), expected)


def test_valid_pooling_ignores_invalid_cells():
    selector, x = random_selector(global_pool='valid'), torch.randn(2, TOKENS, 8)
    selector.alpha.data.zero_()
    ignored = torch.rand(2, TOKENS) < 0.4
    others = torch.where(ignored[..., None], torch.randn(2, TOKENS, 8), x)

    logits = [selector(tokens, SIZES, ignored) for tokens in (x, others)]

    torch.testing.assert_close(logits[0][~ignored], logits[1][~ignored])


def test_pooling_of_all_cells_includes_invalid_ones():
    selector, x = random_selector(), torch.randn(2, TOKENS, 8)
    ignored = torch.rand(2, TOKENS) < 0.4
    others = torch.where(ignored[..., None], torch.randn(2, TOKENS, 8), x)

    logits = [selector(tokens, SIZES, ignored) for tokens in (x, others)]

    assert (logits[0] - logits[1])[~ignored].abs().max() > 1e-3


def test_a_level_without_valid_cells_has_finite_logits():
    selector = random_selector(global_pool='valid')
    ignored = torch.ones(1, TOKENS, dtype=torch.bool)

    assert selector(torch.randn(1, TOKENS, 8), SIZES, ignored).isfinite().all()


def test_a_single_level_needs_no_guide():
    selector = ForegroundTokenSelector(8, 1)

    assert selector.alpha.shape == (0,)
    assert selector(torch.randn(2, 12, 8), [(3, 4)]).shape == (2, 12)
