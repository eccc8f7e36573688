"""Random architectures build and train, or raise an error that names the setting.

MMSPARSE_FUZZ=1000 tries as many of each.
"""

import os
import random
import warnings
from dataclasses import fields

import pytest
import torch
from random_archs import BAD, draw, spoil

from mmsparse.models import DAT, BiFormer, ShuntedTransformer, StagedTransformer

COUNT = int(os.environ.get('MMSPARSE_FUZZ', 40))


@pytest.mark.parametrize('seed', range(COUNT))
def test_a_random_architecture_computes_and_learns(seed):
    rng = random.Random(seed)
    backbone_type, arguments = draw(rng)
    torch.manual_seed(seed)
    backbone = backbone_type(**arguments)
    backbone.init_weights()
    backbone.train()
    least = backbone.min_side
    size = (rng.randint(least, least + 40) for _ in range(2))
    x = torch.randn(2, 3, *size)
    before = x.clone()

    outs = backbone(x)

    assert torch.equal(x, before)
    widths = [arguments['arch']['embed_dims'][i] for i in arguments['out_indices']]
    assert [out.shape[:2] for out in outs] == [(2, width) for width in widths]
    assert all(out.isfinite().all() for out in outs)
    total = sum((out * torch.randn_like(out)).sum() for out in outs)
    learning = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    if learning:
        total.backward()
        for name, parameter in learning.items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('seed', range(COUNT))
def test_an_invalid_setting_is_refused_by_name(seed):
    rng = random.Random(seed)
    drawn = draw(rng)
    arguments, name = spoil(rng, drawn)

    with warnings.catch_warnings(), pytest.raises((ValueError, TypeError)) as caught:
        warnings.simplefilter('error')
        drawn.backbone(**arguments)

    assert name in str(caught.value)


@pytest.mark.parametrize(
    'backbone', [BiFormer, DAT, ShuntedTransformer, StagedTransformer]
)
def test_every_setting_has_invalid_values_to_try(backbone):
    assert {field.name for field in fields(backbone.arch_type)} <= set(BAD)
