"""Arguments of the official classes without a stored case."""

import pytest
import torch
from parity import Case, check_case
from parity.dat import BUILDERS

from mmsparse.conversion.dat import official_key

ATTENTION = dict(
    q_size=[8, 6],
    n_heads=4,
    n_head_channels=4,
    n_groups=2,
    stride=2,
    offset_range_factor=-1,
    use_pe=True,
    dwc_pe=False,
    no_off=False,
    fixed_pe=False,
    ksize=3,
    log_cpb=False,
    attn_drop=0.1,
)
MODEL = dict(
    img_size=64,
    patch_size=4,
    num_classes=5,
    expansion=2,
    drop_path_rate=0.2,
    dim_stem=8,
    dims=[8, 16, 32, 64],
    depths=[2, 2, 2, 2],
    heads=[1, 2, 4, 8],
    window_sizes=[4, 4, 2, 2],
    stage_spec=[['L', 'S'], ['N', 'D'], ['L', 'D'], ['D', 'D']],
    strides=[-1, 4, 2, 1],
    offset_range_factor=[-1, 2, 0, -1],
    groups=[-1, 1, 2, 4],
    use_pes=[False, True, True, False],
    out_indices=[1, 3],
)
ATTENTIONS = {
    'depthwise': dict(dwc_pe=True),
    'fixed': dict(fixed_pe=True),
    'logarithmic': dict(log_cpb=True),
    'no bias': dict(use_pe=False),
    'no offsets': dict(no_off=True),
    'no offsets, depthwise': dict(no_off=True, dwc_pe=True),
    'kernel as stride': dict(ksize=2),
}
MODELS = {
    'plain': {},
    'stem of another width': dict(dim_stem=12),
    'convolutions': dict(
        use_conv_patches=True, use_dwc_mlps=[True] * 4, use_lpus=[True, False] * 2
    ),
    'layer scale': dict(layer_scale_values=[-1, 0.1, -1, 0.1]),
    'all position biases': dict(
        use_pes=[True] * 4,
        dwc_pes=[False, True, False, False],
        fixed_pes=[False, False, True, False],
        log_cpb=[False, False, False, True],
        no_offs=[False, False, True, False],
    ),
}


def own_case(kind, formulation, arguments, x):
    """Return a case that stores weights and outputs of mmsparse by official names."""
    model = BUILDERS[kind](arguments, formulation).eval()
    with torch.no_grad():
        y = model(x)
    levels = {f'out{i + 1}': out for i, out in enumerate(y)} if kind == 'dense' else {}
    outputs = {'cls': {'logits': y}, 'dattn': {'y': y}, 'dense': levels}[kind]
    state = {
        f'state.{official_key(key.removeprefix("backbone."))}': value
        for key, value in model.state_dict().items()
    }
    info = dict(
        kind=kind,
        formula=formulation,
        constructor=arguments,
        outputs=dict.fromkeys(outputs, {}),
        tolerance=dict(atol=1e-5, rtol=1e-5),
    )
    return Case('own', 'dat', info, {'input': x, **outputs, **state})


@pytest.mark.parametrize('formulation', ['v2022', 'v2023'])
@pytest.mark.parametrize('changes', ATTENTIONS.values(), ids=ATTENTIONS)
def test_every_argument_of_the_attention_has_a_counterpart(changes, formulation):
    arguments = {**ATTENTION, 'stage_idx': 3, **changes}
    case = own_case('dattn', formulation, arguments, torch.rand(2, 16, 8, 6))

    assert check_case(case).status == 'passed', check_case(case)


@pytest.mark.parametrize('kind', ['cls', 'dense'])
@pytest.mark.parametrize('formulation', ['v2022', 'v2023'])
@pytest.mark.parametrize('changes', MODELS.values(), ids=MODELS)
def test_every_argument_of_the_models_has_a_counterpart(changes, formulation, kind):
    case = own_case(kind, formulation, {**MODEL, **changes}, torch.rand(2, 3, 64, 64))

    assert check_case(case).status == 'passed', check_case(case)


@pytest.mark.parametrize(
    ('kind', 'arguments', 'why'),
    [
        ('nat', dict(dim=4, num_heads=1, kernel_size=3, dilation=2), 'dilation=2'),
        ('local', dict(dim=4, heads=1, window_size=[2, 3]), 'window_size=[2, 3]'),
        ('cls', {**MODEL, 'stage_spec': [['P']] * 4}, 'stage_spec='),
        ('cls', {**MODEL, 'patch_size': 8}, 'patch_size=8'),
        ('cls', {**MODEL, 'use_cmt_mlps': [True] * 4}, 'use_cmt_mlps'),
        ('qna', {}, 'no counterpart of kind qna'),
    ],
)
def test_arguments_without_a_counterpart_are_unsupported(kind, arguments, why):
    case = Case('x', 'dat', dict(kind=kind, formula='v2023', constructor=arguments), {})

    verdict = check_case(case)

    assert verdict.status == 'unsupported'
    assert verdict.detail.startswith(why)
