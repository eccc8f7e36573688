"""Conventions of timm: what its suite asks of every model, for mmsparse's."""

import re

import pytest
import torch
from torch.nn import functional as F

from mmsparse import create_model, list_models
from mmsparse.checkpoint import write_checkpoint
from mmsparse.checkpoint.publish import as_strings
from mmsparse.conversion.families import FAMILIES
from mmsparse.factory import create, pretrained

NAMES = ['dat-nano', 'biformer-nano', 'shunted-nano']
CONFIG = """
data_preprocessor = dict(mean=[51.0, 102.0, 153.0], std=[255, 51, 51])
model = dict(backbone=dict(type='mmsparse.BiFormer', arch='nano', regions_per_side=4))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=80, edge='short', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]
"""


@pytest.fixture
def logged(logged_by):
    """Lines that the factory logs."""
    return logged_by(create, pretrained)


@pytest.fixture(params=['.pth', '.safetensors'])
def trained(request, tmp_path):
    """A classifier for three classes, and its file with a config."""
    model = create_model('biformer-nano', num_classes=3, regions_per_side=4).eval()
    meta = dict(cfg=CONFIG, dataset_meta=dict(classes=('cat', 'dog', 'owl')))
    path = tmp_path / f'trained{request.param}'
    strings = as_strings(meta) if path.suffix == '.safetensors' else meta
    write_checkpoint(path, model.state_dict(), strings)
    return model, path


@pytest.fixture(scope='module', params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope='module')
def x():
    return torch.rand(2, 3, 64, 64)


def test_names_are_filtered_by_a_pattern():
    assert list_models('dat-pp*') == ['dat-pp-base', 'dat-pp-small', 'dat-pp-tiny']
    assert list_models('*nano') == sorted([*NAMES, 'staged-nano'])
    assert list_models('swin*') == []
    assert list_models(['dat-pp-t*', 'biformer-p*']) == ['biformer-pico', 'dat-pp-tiny']


def test_names_with_weights():
    assert 'biformer-nano' in list_models(pretrained=True)
    assert set(list_models(pretrained=True)) < set(list_models())


@pytest.mark.parametrize('create_it', [create_model, create.create_backbone])
def test_an_unknown_name_is_an_error_with_the_closest(create_it):
    with pytest.raises(ValueError, match=r"got 'dat_pp_tny': did you mean 'dat-pp-tin"):
        create_it('dat_pp_tny')


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('dat_pp_tiny', "did you mean 'dat-pp-tiny'?"),
        ('mmsparse_DAT_pp_tiny', "did you mean 'dat-pp-tiny'?"),
        (
            'hf_hub:Me/dat',
            "of a model, for example 'biformer-base', with pretrained='hf-",
        ),
    ],
)
def test_a_name_of_timm_is_an_error_with_that_of_mmsparse(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create_model(given)


@pytest.mark.parametrize(
    ('create_it', 'argument', 'message'),
    [
        (create_model, 'in_chans', "for biformer; did you mean 'in_channels'?"),
        (create_model, 'num_class', "did you mean 'num_classes'?"),
        (create_model, 'img_size', 'it has drop_path_rate, drop_rate, features_only, '),
        (create.create_backbone, 'out_indexes', "did you mean 'out_indices'?"),
        (create.create_backbone, 'arch', "create_backbone has no argument 'arch'"),
    ],
)
def test_an_unknown_argument_is_an_error_with_the_closest(create_it, argument, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        create_it('biformer-nano', **{argument: 1})


def test_features_head_and_forward_agree(name, x):
    model = create_model(name, num_classes=5).eval()

    features = model.forward_features(x)

    assert features.shape == (2, model.num_features, 2, 2)
    assert model.num_features == model.head_hidden_size == 256
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    expected = F.linear(pooled, *model.get_classifier().parameters())
    torch.testing.assert_close(model.forward_head(features), expected)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize('reset', [False, True], ids=['create', 'reset'])
def test_without_classes_the_pooled_features_are_returned(name, x, reset):
    model = create_model(name, num_classes=4 if reset else 0).eval()
    if reset:
        model.reset_classifier(0)

    assert model.num_classes == 0
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    features = model.forward_features(x)
    torch.testing.assert_close(model(x), features.mean((2, 3)))
    model.reset_classifier(0, 'max')
    torch.testing.assert_close(model(x), features.amax((2, 3)))
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(7, 'avg')
    assert model(x).shape == (2, 7)


def test_a_new_linear_layer_has_the_dtype_of_the_model():
    model = create_model('shunted-nano', num_classes=0).double()

    model.reset_classifier(3)

    assert model.get_classifier().weight.dtype == torch.float64


def test_feature_pyramids(name, x):
    model = create_model(name, features_only=True).eval()
    last = create_model(name, features_only=True, out_indices=2).eval()
    some = create_model(name, features_only=True, out_indices=(-1, 1)).eval()

    for pyramid, strides in (
        (model, [4, 8, 16, 32]),
        (last, [16, 32]),
        (some, [8, 32]),
    ):
        outs = pyramid(x)
        assert pyramid.feature_info.reduction() == strides
        assert [64 // out.shape[2] for out in outs] == strides
        assert pyramid.feature_info.channels() == [out.shape[1] for out in outs]


def test_intermediate_features_of_a_classifier(name, x):
    model = create_model(name, num_classes=5).eval()

    last, every = model.forward_intermediates(x)

    torch.testing.assert_close(last, model.forward_features(x))
    modules = dict(model.named_modules())
    for stage, feature_map in zip(model.feature_info, every, strict=True):
        assert stage['module'] in modules
        assert feature_map.shape[1] == stage['num_chs']
        assert feature_map.shape[2] == 64 // stage['reduction']


@pytest.mark.parametrize('prune_norm', [False, True])
def test_stages_that_intermediate_features_do_not_need_are_pruned(name, x, prune_norm):
    model = create_model(name).eval()
    _, every = model.forward_intermediates(x)

    assert model.prune_intermediate_layers([-3, 2], prune_norm) == [1, 2]

    some = model.forward_intermediates(x, [1, 2], intermediates_only=True)
    for feature_map, expected in zip(some, every[1:3], strict=True):
        torch.testing.assert_close(feature_map, expected)
    torch.testing.assert_close(model(x), every[2])
    assert len(model.feature_info) == len(model.backbone.stages) == 3
    model.reset_classifier(4, 'avg')
    assert model(x).shape == (2, 4)


def test_outputs_of_a_pruned_pyramid_keep_their_norms(name, x):
    pyramid = create_model(name, features_only=True).eval()
    expected = pyramid(x)[:2]

    assert pyramid.prune_intermediate_layers([1]) == [1]

    for out, before in zip(pyramid(x), expected, strict=True):
        torch.testing.assert_close(out, before)
    copied = create_model(name, features_only=True, out_indices=(0, 1))
    copied.load_state_dict(pyramid.state_dict())


def test_the_data_config_names_layers_of_the_model(name):
    model = create_model(name)

    cfg = model.default_cfg

    state = model.state_dict()
    assert cfg['architecture'] == name
    assert state[f'{cfg["first_conv"]}.weight'].shape[1] == 3
    assert state[f'{cfg["classifier"]}.weight'].shape[0] == cfg['num_classes'] == 1000
    side = 128 if name == 'dat-nano' else 224
    assert cfg['input_size'] == (3, side, side)
    assert cfg['pool_size'] == (side // 32, side // 32)
    assert cfg['crop_mode'] == ('squash' if name == 'dat-nano' else 'center')
    assert (cfg['crop_pct'], cfg['interpolation']) == (0.875, 'bicubic')


def test_feature_pyramids_have_a_data_config(name):
    model = create_model(name, features_only=True)

    cfg = model.pretrained_cfg

    assert f'{cfg["first_conv"]}.weight' in model.state_dict()
    assert cfg['mean'] == (0.485, 0.456, 0.406)
    assert 'num_classes' not in cfg


def test_other_numbers_of_channels_have_their_mean_and_deviation():
    cfg = create_model('dat-nano', in_channels=1).pretrained_cfg

    assert cfg['input_size'] == (1, 128, 128)
    assert cfg['mean'] == pytest.approx((0.449,))
    assert len(create_model('dat-nano', in_channels=5).pretrained_cfg['std']) == 5


def test_a_file_brings_classes_settings_and_data(trained, x, logged):
    model, path = trained

    loaded = create_model('biformer-nano', path).eval()

    assert torch.equal(loaded(x), model(x))  # with four regions per side, not seven
    cfg = loaded.pretrained_cfg
    assert cfg['num_classes'] == loaded.num_classes == 3
    assert cfg['label_names'] == ('cat', 'dog', 'owl')
    assert cfg['mean'] == pytest.approx((0.2, 0.4, 0.6))
    assert cfg['std'] == pytest.approx((1.0, 0.2, 0.2))
    assert (cfg['input_size'], cfg['crop_pct']) == ((3, 64, 64), 0.8)
    assert (cfg['interpolation'], cfg['crop_mode']) == ('bicubic', 'center')
    assert logged == []


def test_arguments_take_precedence_over_the_settings_of_a_file(trained):
    _, path = trained

    loaded = create_model('biformer-nano', path, regions_per_side=5)

    assert loaded.backbone.stages[0][0].attn.regions_per_side == 5


def test_other_classes_reset_the_head_with_one_line(trained, x, logged):
    model, path = trained

    loaded = create_model('biformer-nano', path, num_classes=5).eval()

    assert loaded(x).shape == (2, 5)
    torch.testing.assert_close(loaded.forward_features(x), model.forward_features(x))
    assert logged == [
        f'{path} has a linear layer for 3 classes; that for 5 starts from random '
        'weights.'
    ]
    assert create_model('biformer-nano', path, num_classes=0).num_classes == 0
    assert len(logged) == 1


def test_other_channels_adapt_the_stem(trained, x):
    model, path = trained

    gray = create_model('biformer-nano', path, in_channels=1).eval()

    one = x[:, :1]
    torch.testing.assert_close(gray(one), model(one.expand(-1, 3, -1, -1)))


def test_weights_by_name():
    model = create_model('biformer-nano', pretrained=True).eval()

    assert model.num_classes == 10
    assert model.pretrained_cfg['label_names'] == tuple('0123456789')
    assert model.backbone.stages[0][0].attn.regions_per_side == 4


def test_models_are_built_on_the_meta_device(name):
    with torch.device('meta'):
        model = create_model(name)

    assert all(parameter.is_meta for parameter in model.parameters())


def test_false_is_no_weights():
    assert create_model('dat-nano', pretrained=False).num_classes == 1000


def test_dropout_is_applied_to_the_pooled_features(x):
    model = create_model('shunted-nano', num_classes=0, drop_rate=0.5).train()

    assert 0.3 < (model(x) == 0).float().mean() < 0.7
    assert not (model.eval()(x) == 0).any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(global_pool='mean'), "global_pool must be one of .*; got 'mean'"),
        (dict(global_pool=''), r"'avg' or 'max' for num_classes=1000; .*num_classes=0"),
        (dict(global_pool=None), 'global_pool must be one of .*; got None'),
        (dict(num_classes=-1), 'num_classes must be an integer of at least 0; got -1'),
        (dict(num_classes=True), 'num_classes must be an integer .*; got True'),
        (dict(drop_rate=1.5), r'drop_rate must be a number in \[0, 1\); got 1.5'),
        (dict(out_indices=(0,)), 'out_indices needs features_only=True'),
        (dict(features_only=True, out_indices=5), 'from 1 to 4; got 5'),
    ],
    ids=str,
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model('shunted-nano', **arguments)


@pytest.mark.parametrize('family', FAMILIES)
def test_parameters_are_grouped_by_depth(family):
    helpers = pytest.importorskip('timm.models')
    model = create_model(f'{family}-nano')

    groups = helpers.group_parameters(model, model.group_matcher())

    names = [name for name, _ in model.named_parameters()]
    assert sorted(sum(groups.values(), [])) == sorted(names)
    assert 'head.fc.weight' in groups[max(groups)]
    assert all(name.startswith('backbone.downsamples.0.') for name in groups[0])


def test_parameters_without_weight_decay_have_the_names_of_the_classifier():
    model = create_model('dat-nano')

    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    assert len(model.no_weight_decay()) == len(model.backbone.no_weight_decay())


def test_activation_checkpointing_is_set_by_the_method_of_timm():
    model = create_model('shunted-nano')

    model.set_grad_checkpointing()

    assert model.backbone.with_cp
