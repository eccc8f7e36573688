"""What a backbone loads from the file of its init_cfg."""

import re

import pytest
import torch
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader

from mmsparse.checkpoint import pretrained
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.conversion.families import FAMILIES
from mmsparse.errors import OfficialWeightsError, UsageError
from mmsparse.models import DAT, BiFormer, ShuntedTransformer

ALL = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def safe_loader(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    register_safe_loader()


@pytest.fixture
def logged(monkeypatch):
    """Lines about loaded weights."""
    lines = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, *_: lines.append(text))
    return lines


def load(content, path, backbone=DAT, prefix=None, type='Pretrained', **arguments):
    torch.save(content, path)
    cfg = dict(type=type, checkpoint=str(path))
    if prefix is not None:
        cfg['prefix'] = prefix
    backbone = backbone('nano', init_cfg=cfg, **arguments)
    backbone.init_weights()
    return backbone


def classifier(backbone=DAT, prefix='backbone.', **arguments):
    weights = backbone('nano', **arguments).state_dict()
    return {prefix + k: x for k, x in weights.items()} | {'head.fc.bias': torch.ones(3)}


def official(family):
    weights = FAMILIES[family].backbone('nano').state_dict()
    return {
        FAMILIES[family].official(f'backbone.{key}', 'nano'): x
        for key, x in weights.items()
    }


@pytest.mark.parametrize('type', ['Pretrained', PretrainedInit], ids=['name', 'class'])
def test_one_line_counts_the_weights(type, tmp_path, logged):
    path = tmp_path / 'a.pth'

    backbone = load(classifier(), path, prefix='backbone.', type=type)

    assert logged == [f'init_cfg: 184 of 184 weights of DAT from {path}']
    assert len(backbone._load_state_dict_post_hooks) == 0


def test_the_line_names_what_the_file_lacks(tmp_path, logged):
    path = tmp_path / 'a.pth'
    weights = classifier()
    weights['backbone.stages.0.0.norm1.weight'] = torch.ones(7)

    load(weights, path, prefix='backbone.', out_indices=ALL, out_norm='layer')

    assert logged == [
        f'init_cfg: 181 of 190 weights of DAT from {path}; not in it: '
        'stages.0.0.norm1.weight (7,) instead of (32,), out_norms.layer0.weight, '
        'out_norms.layer0.bias and 6 more'
    ]


def test_weights_that_the_backbone_adapts_are_loaded(tmp_path, logged):
    load(classifier(), tmp_path / 'a.pth', prefix='backbone.', in_channels=1)

    assert logged[0].startswith('init_cfg: 184 of 184 weights')


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('wrap', ['flat', 'model', 'backbone'])
@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_an_official_file_is_an_error(family, wrap, prefix, tmp_path):
    path, weights = tmp_path / 'official.pth', official(family)
    if wrap == 'model':
        weights = dict(model=weights, epoch=299)
    elif wrap == 'backbone':
        weights = {f'backbone.{key}': x for key, x in weights.items()}

    with pytest.raises(
        OfficialWeightsError,
        match=rf'^init_cfg: \d+ of \d+ weights of \w+ are in {path}.*; it is an '
        rf'official checkpoint of {family}; convert it, see docs/migration\.md$',
    ) as info:
        load(weights, path, FAMILIES[family].backbone, prefix)

    assert info.value.path == str(path)


def test_official_biformer_files_share_some_names_with_mmsparse(tmp_path):
    weights = official('biformer')
    names = BiFormer('nano').state_dict()

    assert len(names.keys() & weights.keys()) > 0.1 * len(names)


MISTAKES = {
    'prefix forgotten': (
        dict(content=classifier),
        "0 of 184 weights of DAT are in PATH; set prefix='backbone.'",
    ),
    'prefix of a parallel model forgotten': (
        dict(content=lambda: classifier(prefix='module.backbone.')),
        "0 of 184 weights of DAT are in PATH; set prefix='module.backbone.'",
    ),
    'prefix that the file lacks': (
        dict(content=lambda: DAT('nano').state_dict(), prefix='backbone.'),
        "0 of 184 weights of DAT are in PATH under prefix='backbone.'; remove "
        "prefix='backbone.'",
    ),
    'another prefix': (
        dict(content=lambda: classifier(prefix='encoder.'), prefix='backbone'),
        "under prefix='backbone'; set prefix='encoder.'",
    ),
    'another prefix that the file has': (
        dict(content=classifier, prefix='head.'),
        "0 of 184 weights of DAT are in PATH under prefix='head.'; set "
        "prefix='backbone.'",
    ),
    'another model': (
        dict(content=lambda: {f'layer{i}.w': torch.ones(2) for i in range(9)}),
        "of DAT are in PATH; its keys begin with ['layer0.w', 'layer1.w', 'layer2.w']",
    ),
    'weights under model': (
        dict(content=lambda: dict(model=DAT('nano').state_dict(), epoch=3)),
        '0 of 184 weights of DAT are in PATH; mmengine finds weights at the top or '
        "under 'state_dict'; got ['model', 'epoch']",
    ),
    'no weights': (dict(content=lambda: {'epoch': torch.ones(1)}), 'begin with'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_file_with_nearly_nothing_is_an_error_with_the_way_out(mistake, tmp_path):
    arguments, message = MISTAKES[mistake]
    path = tmp_path / 'a.pth'
    content = arguments['content']()

    with pytest.raises(UsageError) as info:
        load(content, path, prefix=arguments.get('prefix'))

    assert not isinstance(info.value, OfficialWeightsError)
    text = str(info.value)
    assert text.startswith('init_cfg: ')
    assert message.replace('PATH', str(path)) in text
    assert '\n' not in text


def test_weights_of_another_width_are_an_error(tmp_path):
    wide = DAT(dict(base='nano', embed_dims=(64, 128, 256, 512))).state_dict()

    with pytest.raises(
        UsageError,
        match=r'7 of 184 weights of DAT are in \S+; other sizes, as of another arch: '
        r'downsamples\.0\.0\.weight \(32, 3, 3, 3\) instead of \(16, 3, 3, 3\), ',
    ):
        load(wide, tmp_path / 'a.pth')


def test_files_of_other_backends_are_checked_too(monkeypatch, logged):
    weights = classifier()
    loader = lambda filename, map_location=None: dict(state_dict=weights)  # noqa: E731
    CheckpointLoader.register_scheme('memory://', loader)
    cfg = dict(type='Pretrained', checkpoint='memory://a')

    DAT('nano', init_cfg=dict(cfg, prefix='backbone.')).init_weights()
    with pytest.raises(UsageError, match=r"are in memory://a; set prefix='backbone\.'"):
        DAT('nano', init_cfg=cfg).init_weights()

    assert logged == ['init_cfg: 184 of 184 weights of DAT from memory://a']


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_path_may_begin_with_the_home_folder(suffix, tmp_path, monkeypatch, logged):
    from mmsparse.checkpoint import write_checkpoint

    monkeypatch.setenv('HOME', str(tmp_path))
    write_checkpoint(tmp_path / f'a.{suffix}', DAT('nano').state_dict(), {})
    cfg = dict(type='Pretrained', checkpoint=f'~/a.{suffix}')

    DAT('nano', init_cfg=cfg).init_weights()

    assert logged == [f'init_cfg: 184 of 184 weights of DAT from ~/a.{suffix}']


def test_a_second_init_cfg_initializes_the_rest(tmp_path, logged):
    torch.save(DAT('nano').state_dict(), tmp_path / 'a.pth')
    cfgs = [
        dict(type='Constant', layer='LayerNorm', val=3.0),
        dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth')),
    ]

    backbone = DAT('nano', init_cfg=cfgs, out_norm='layer')
    backbone.init_weights()

    assert backbone.out_norms['layer3'].weight.eq(3).all()
    assert re.match(
        r'init_cfg: 182 of 184 weights of DAT from .*a\.pth; not', logged[0]
    )


@pytest.mark.parametrize('backbone', [DAT, BiFormer, ShuntedTransformer])
def test_the_deprecated_pretrained_loads_and_names_its_successor(
    backbone, tmp_path, logged
):
    path = str(tmp_path / 'a.pth')
    expected = backbone('nano').state_dict()
    torch.save(expected, path)

    built = backbone('nano', pretrained=path)
    built.init_weights()

    for key, x in built.state_dict().items():
        assert x.equal(expected[key])
    setting = f"{{'type': 'Pretrained', 'checkpoint': '{path}'}}"
    assert logged[0] == f"pretrained='{path}' is deprecated; set init_cfg={setting}."


def test_pretrained_weights_of_a_base_config_are_refused():
    expected = (
        "pretrained='open-mmlab://resnet50_v1c' are weights of another backbone, "
        'perhaps from a base config; set it to None'
    )
    with pytest.raises(UsageError, match=expected):
        BiFormer('nano', pretrained='open-mmlab://resnet50_v1c')


def test_pretrained_and_init_cfg_are_refused():
    with pytest.raises(UsageError, match="'a.pth' and init_cfg=.*: set init_cfg only."):
        DAT('nano', pretrained='a.pth', init_cfg=[])
