import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from mmsparse.models.backbones.arch import (
    Arch,
    Count,
    KernelSize,
    OddSize,
    PerStage,
    at_least,
)


@dataclass(frozen=True, kw_only=True)
class ToyArch(Arch):
    """Settings of every type."""

    pools: PerStage[Count]
    kernels: PerStage[KernelSize] = 3
    windows: PerStage[OddSize] = 7
    scales: PerStage[float | None] = None
    norms: PerStage[Literal['batch', 'layer']] = 'layer'
    ratios: PerStage[Literal[1, 2]] = 1
    cfgs: PerStage[Mapping[str, Any] | None] = None
    flags: PerStage[bool] = False
    convs: Annotated[int, at_least(0)] = 0


SIZES = dict(embed_dims=[8, 16, 32], depths=1, num_heads=[1, 2, 4], pools=2)
KNOWN = {'toy': ToyArch(**SIZES, convs=1)}


def test_one_value_applies_to_all_stages():
    arch = ToyArch.resolve(SIZES, KNOWN)

    assert arch == ToyArch.resolve(ToyArch(**SIZES), KNOWN)
    assert arch.embed_dims == (8, 16, 32)
    assert arch.num_heads == (1, 2, 4)
    assert (arch.depths, arch.pools, arch.mlp_ratios) == ((1,) * 3, (2,) * 3, (4,) * 3)
    assert arch.scales == (None, None, None)
    assert arch.convs == 0
    assert arch.num_stages == 3


def test_a_dict_may_have_what_differs_from_a_base():
    two_stages = dict(base='toy', embed_dims=(4, 8), num_heads=(1, 1))

    arch = ToyArch.resolve(two_stages, KNOWN)

    assert (arch.embed_dims, arch.pools, arch.convs) == ((4, 8), (2, 2), 1)
    assert two_stages == dict(base='toy', embed_dims=(4, 8), num_heads=(1, 1))
    assert ToyArch.resolve('toy', KNOWN) == ToyArch.resolve(KNOWN['toy'], KNOWN)


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('huge', "arch must be one of ['toy']; got 'huge'."),
        (None, "arch must be one of ['toy']; got None."),
        (dict(base='huge'), "arch['base'] must be one of ['toy']; got 'huge'."),
        (dict(pools=2, pool=1), "missing: ['depths', 'embed_dims', 'num_heads'],"),
        (dict(pools=2, pool=1), "unknown: ['pool']."),
        (
            dict(embed_dims=8),
            'embed_dims must be a list of one value per stage, each an integer of at '
            'least 2; got 8.',
        ),
        (dict(embed_dims=[8, 1, 8]), 'embed_dims[1] must be an integer of at least 2'),
        (
            dict(pools=[1, 2]),
            "need the same number of stages; got {'embed_dims': 3, 'num_heads': 3, "
            "'pools': 2}.",
        ),
        (dict(embed_dims=[], num_heads=1), "got {'embed_dims': 0}."),
        (dict(pools=0), 'pools must be an integer of at least 1; got 0.'),
        (dict(pools=True), 'pools must be an integer of at least 1; got True.'),
        (dict(pools=[1, 2.0, 3]), 'pools[1] must be an integer of at least 1; got 2.0'),
        (dict(mlp_ratios=0), 'mlp_ratios must be a positive number; got 0.'),
        (dict(kernels=2), 'kernels must be 0 or an odd integer; got 2.'),
        (dict(windows=0), 'windows must be an odd integer of at least 1; got 0.'),
        (dict(scales='1'), "scales must be a finite number or None; got '1'."),
        (dict(scales=[1, None, float('nan')]), 'scales[2] must be a finite number or'),
        (dict(norms='group'), "norms must be one of ['batch', 'layer']; got 'group'."),
        (dict(ratios=[1, 2, 3]), 'ratios[2] must be one of [1, 2]; got 3.'),
        (dict(ratios=True), 'ratios must be one of [1, 2]; got True.'),
        (dict(cfgs='soft'), "cfgs must be a dict or None; got 'soft'."),
        (dict(flags=1), 'flags must be True or False; got 1.'),
        (dict(convs=[1, 2, 3]), 'convs must be an integer of at least 0; got [1, 2, 3'),
    ],
)
def test_an_invalid_setting_is_reported_with_what_was_expected(arch, message):
    if isinstance(arch, dict) and not {'base', 'pool'} & set(arch):
        arch = SIZES | arch

    with pytest.raises(ValueError, match=re.escape(message)):
        ToyArch.resolve(arch, KNOWN)
