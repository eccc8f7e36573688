"""A new family is in the factory, the zoo and the contract without another edit."""

from dataclasses import dataclass

import pytest
import test_contract
import torch
from torch import nn

from mmsparse import create_backbone, list_models
from mmsparse.analysis.flops import measure_classifier, published_classifiers
from mmsparse.models.backbones.arch import Arch, Count, PerStage
from mmsparse.models.backbones.base import (
    Stage,
    StagedBackbone,
    drop_path_rates,
    stage_errors,
)
from mmsparse.models.layers.block import TransformerBlock2d
from mmsparse.models.layers.norm import LayerNorm2d
from mmsparse.registry import MODELS


def row_attention(q, k, v):
    """Attention of every position to those of its row, (B, H, W, C)."""
    return nn.functional.scaled_dot_product_attention(q, k, v)


class RowAttention2d(nn.Module):
    def __init__(self, in_channels, num_heads=1):
        super().__init__()
        if in_channels % num_heads:
            raise ValueError(f'num_heads must divide in_channels; got {num_heads}.')
        self.qkv = nn.Linear(in_channels, 3 * in_channels)

    def forward(self, x):
        q, k, v = self.qkv(x.movedim(1, -1)).chunk(3, dim=-1)
        return row_attention(q, k, v).movedim(-1, 1)


@dataclass(frozen=True, kw_only=True)
class ToyArch(Arch):
    kernels: PerStage[Count]


def define_toy():
    @MODELS.register_module()
    class Toy(StagedBackbone):
        family = 'toy'
        arch_type = ToyArch
        arch_settings = {
            'nano': ToyArch(**test_contract.NANO, kernels=(4, 2, 2, 2)),
            'tiny': ToyArch(embed_dims=(8, 8, 8, 8), depths=1, num_heads=1, kernels=2),
        }

        def __init__(
            self,
            arch='tiny',
            out_indices=(3,),
            out_norm='layer',
            drop_path_rate=0.0,
            frozen_stages=-1,
            norm_eval=False,
            with_cp=False,
            init_cfg=None,
        ):
            super().__init__(
                arch, out_indices, out_norm, frozen_stages, norm_eval, with_cp, init_cfg
            )
            arch, rates = self.arch, drop_path_rates(drop_path_rate, self.arch.depths)
            for i in range(self.num_stages):
                channels, kernel = arch.embed_dims[i], arch.kernels[i]
                before = arch.embed_dims[i - 1] if i else 3
                with stage_errors(i):
                    blocks = (
                        TransformerBlock2d(
                            RowAttention2d(channels, arch.num_heads[i]),
                            channels,
                            mlp_ratio=arch.mlp_ratios[i],
                            drop_path=rate,
                        )
                        for rate in rates[i]
                    )
                    conv = nn.Conv2d(before, channels, kernel, stride=kernel)
                    self.add_stage(conv, Stage(*blocks))
            self.add_out_norms(LayerNorm2d)
            self.freeze()

    return Toy


@pytest.fixture
def toy(clean_registries):
    return define_toy()


def test_a_new_family_is_in_the_factory(toy):
    assert {'toy-nano', 'toy-tiny'} <= set(list_models())
    assert isinstance(create_backbone('toy-nano'), toy)


def test_a_new_family_is_in_the_zoo(toy):
    (published,) = (x for x in published_classifiers() if x[0].family == 'toy')
    part = measure_classifier(*published)

    assert part.name == 'toy-tiny'
    with torch.device('meta'):
        model = nn.ModuleList([toy('tiny'), nn.Linear(8, 1000)])
    assert part.parameters == sum(x.numel() for x in model.parameters())


@pytest.mark.parametrize(
    'test',
    [
        test_contract.test_returns_the_stages_of_out_indices_alone,
        test_contract.test_every_trainable_parameter_gets_a_finite_gradient,
    ],
)
def test_a_new_family_is_in_the_contract(toy, test):
    test(test_contract.builder(*test_contract.cases()['toy']), out_indices=(1, 3))


def test_an_error_of_a_layer_names_the_stage(toy):
    with pytest.raises(ValueError, match=r'stages\[0\]: num_heads must divide .* 3\.'):
        toy(dict(base='nano', num_heads=(3, 1, 1, 1)))


def test_a_family_has_one_class(toy):
    with pytest.raises(ValueError, match="family must be a new name; 'toy' is .*Toy"):
        define_toy()
