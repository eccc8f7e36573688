import pytest
import torch

import mmsparse

timm = pytest.importorskip('timm')


@pytest.fixture(scope='module')
def names():
    return mmsparse.register_timm()


def test_all_models_are_registered_once(names):
    assert sorted(names) == timm.list_models('mmsparse*')
    assert mmsparse.register_timm() == names
    assert len(names) == len(mmsparse.list_models())
    assert 'mmsparse_dat_pp_tiny' in names


def test_models_with_weights_are_listed(names):
    assert 'mmsparse_biformer_nano' in timm.list_models('mmsparse*', pretrained=True)


def test_a_model_of_timm_is_one_of_mmsparse(names):
    model = timm.create_model(
        'mmsparse_dat_nano',
        num_classes=6,
        in_chans=1,
        drop_rate=0.0,
        drop_path_rate=0.1,
        global_pool='avg',
        cache_dir=None,
    )

    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 6)
    assert model.pretrained_cfg['architecture'] == 'dat-nano'


def test_feature_pyramids_of_timm(names):
    model = timm.create_model(
        'mmsparse_shunted_nano', features_only=True, out_indices=(1, -1)
    )

    outs = model(torch.rand(1, 3, 64, 64))

    assert isinstance(outs, list)
    assert [out.shape[1] for out in outs] == model.feature_info.channels()
    assert model.feature_info.reduction() == [8, 32]


def test_weights_and_transform_fit_each_other(names):
    data = pytest.importorskip('timm.data')
    model = timm.create_model('mmsparse_biformer_nano', pretrained=True).eval()

    transform = data.create_transform(**data.resolve_model_data_config(model))

    images = pytest.importorskip('PIL.Image')
    x = transform(images.new('RGB', (90, 120), (255, 255, 255)))
    assert x.shape == (3, 64, 64)
    torch.testing.assert_close(x, torch.ones(3, 64, 64))
    assert model(x[None]).shape == (1, 10)


def test_a_file_of_weights_is_loaded(names, tmp_path):
    trained = mmsparse.create_model('shunted-nano', num_classes=3).eval()
    torch.save(trained.state_dict(), tmp_path / 'trained.pth')
    x = torch.rand(1, 3, 64, 64)

    overlay = dict(file=str(tmp_path / 'trained.pth'))
    model = timm.create_model(
        'mmsparse_shunted_nano', pretrained=True, pretrained_cfg_overlay=overlay
    )

    assert torch.equal(model.eval()(x), trained(x))


def test_layer_decay_of_timm_takes_the_models(names):
    optim = pytest.importorskip('timm.optim')
    model = timm.create_model('mmsparse_biformer_nano', num_classes=2)

    optimizer = optim.create_optimizer_v2(
        model, opt='adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.5
    )

    scales = [group['lr_scale'] for group in optimizer.param_groups]
    assert max(scales) == 1
    assert min(scales) < 0.5**5


@pytest.mark.parametrize('cls', ['FeatureGetterNet', 'FeatureHookNet'])
def test_feature_extractors_of_timm_wrap_the_classifiers(names, cls):
    extractor = getattr(pytest.importorskip('timm.models._features'), cls)
    model = timm.create_model('mmsparse_dat_nano').eval()
    x = torch.rand(1, 3, 64, 64)
    expected = model.forward_intermediates(x, intermediates_only=True)

    outs = extractor(model, out_indices=(0, 2))(x)

    for out, feature_map in zip(outs, (expected[0], expected[2]), strict=True):
        torch.testing.assert_close(out, feature_map)


def test_a_pyramid_may_name_the_extractor_of_timm(names):
    model = timm.create_model(
        'mmsparse_biformer_nano', features_only=True, feature_cls='getter'
    )

    assert len(model(torch.rand(1, 3, 64, 64))) == 4


def test_a_path_takes_the_place_of_known_weights(names, tmp_path):
    weights = timm.create_model('mmsparse_biformer_nano', num_classes=3).state_dict()
    torch.save(weights, tmp_path / 'mine.pth')

    model = timm.create_model('mmsparse_biformer_nano', tmp_path / 'mine.pth')

    assert model.num_classes == 3
    bias = 'head.fc.bias'
    assert torch.equal(model.state_dict()[bias], weights[bias])


def test_random_weights_have_the_classes_of_the_config(names):
    model = timm.create_model('mmsparse_dat_nano', pretrained_cfg=dict(num_classes=7))

    assert model.num_classes == 7


def test_an_unknown_tag_is_an_error(names):
    with pytest.raises(ValueError, match=r"nano has no weights with the tag 'in1k'"):
        timm.create_model('mmsparse_dat_nano.in1k')
