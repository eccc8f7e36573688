"""LoRA by peft on every linear layer of a backbone."""

import pytest
import torch
from tiny_backbones import ARCHS, OTHERS, build
from torch import nn

peft = pytest.importorskip('peft')


def with_adapters(backbone):
    config = peft.LoraConfig(target_modules='all-linear', r=2, lora_alpha=8)
    model = peft.get_peft_model(backbone, config)
    for name, weight in model.named_parameters():
        if 'lora_B' in name:  # zero, so that an adapter starts without effect
            nn.init.normal_(weight, std=0.5)
    return model


@pytest.mark.parametrize('side', [48, 96])  # the second has layers of many tokens
@pytest.mark.parametrize('name', [*ARCHS, *OTHERS])
def test_gradients_reach_the_adapter_of_every_linear_layer(name, side):
    backbone = build(name)
    linears = [x for x in backbone.modules() if isinstance(x, nn.Linear)]
    model = with_adapters(backbone)

    sum(x.square().mean() for x in model(torch.rand(2, 3, side, side))).backward()

    trained = {n: x.grad for n, x in model.named_parameters() if x.requires_grad}
    assert len(trained) == 2 * len(linears)
    assert [n for n, grad in trained.items() if grad is None or not grad.any()] == []


@pytest.mark.parametrize('name', [*ARCHS, 'dat-log_cpb'])
def test_merged_adapters_give_the_same_feature_maps(name):
    x = torch.rand(2, 3, 96, 96)
    plain = build(name).eval()(x)
    model = with_adapters(build(name)).eval()
    adapted = model(x)

    merged = model.merge_and_unload()

    assert {type(x) for x in merged.modules() if isinstance(x, nn.Linear)} == {
        nn.Linear
    }
    torch.testing.assert_close(merged(x), adapted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(adapted[1], plain[1], atol=1e-2)
