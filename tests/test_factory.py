import subprocess
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmsparse import create_backbone, create_model, list_models
from mmsparse.checkpoint import write_checkpoint
from mmsparse.conversion.families import FAMILIES
from mmsparse.errors import UsageError
from mmsparse.factory import create, pretrained
from mmsparse.models import DAT, BiFormer

EVERY = dict(out_indices=(0, 1, 2, 3))


@pytest.fixture
def logged(logged_by):
    """Lines that the factory logs."""
    return logged_by(create, pretrained)


def official_weights(family, arch='nano', classes=3, **settings):
    """A random backbone, and its weights with a head under official keys."""
    backbone = FAMILIES[family].backbone(arch, **settings).eval()
    weights = {f'backbone.{key}': x for key, x in backbone.state_dict().items()}
    if classes:
        weights['head.fc.weight'] = torch.rand(classes, backbone.arch.embed_dims[-1])
        weights['head.fc.bias'] = torch.rand(classes)
    official = FAMILIES[family].official
    return backbone, {official(key, arch): x for key, x in weights.items()}


def same_outputs(one, other):
    x = torch.rand(1, 3, 64, 64)
    return all(map(torch.equal, one.eval()(x), other.eval()(x)))


def test_every_arch_has_a_name():
    names = list_models()

    assert len(names) == len(set(names)) == 21
    assert {'dat-pp-tiny', 'dat-base-384', 'biformer-stl-nchw', 'shunted-nano'} < {
        *names
    }


@pytest.mark.parametrize('create', [create_backbone, create_model])
@pytest.mark.parametrize('name', ['dat-huge', 'swin-tiny', 'nano', ''])
def test_an_unknown_name_is_an_error_with_the_known_ones(create, name):
    message = rf"'(biformer-base|dat-base)'.* got '{name}'|got '{name}': did you mean"
    with pytest.raises(ValueError, match=message):
        create(name, pretrained='nothing.pth')


def test_of_openmmlab_only_mmengine_is_needed():
    program = """
import sys
for package in ('mmcv', 'mmdet', 'mmpretrain', 'mmseg'):
    sys.modules[package] = None
import torch
from mmsparse import create_backbone
for family in ('dat', 'biformer', 'shunted'):
    backbone = create_backbone(f'{family}-nano', out_indices=(1, 3))
    print(*(tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))))
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True
    )

    assert done.stderr == ''
    assert done.stdout == '(1, 64, 8, 12) (1, 256, 2, 3)\n' * 3


@pytest.mark.parametrize('name', ['dat-nano', 'biformer-nano', 'shunted-nano'])
def test_feature_info_is_that_of_timm(name):
    backbone = create_backbone(name, out_indices=(0, 2))

    outs = backbone(torch.rand(1, 3, 64, 64))

    info = backbone.feature_info
    assert info.channels() == [x.shape[1] for x in outs]
    assert info.reduction() == [64 // x.shape[2] for x in outs]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_weights_are_found_in_a_model(suffix, prefix, tmp_path):
    trained = BiFormer('nano', out_norm='layer', **EVERY)
    torch.nn.init.uniform_(trained.out_norms['layer1'].weight)
    weights = {prefix + key: x for key, x in trained.state_dict().items()}
    others = {'head.fc.bias': torch.zeros(3)} if prefix else {}
    path = tmp_path / f'model{suffix}'
    write_checkpoint(path, {**weights, **others}, meta={})

    backbone = create_backbone('biformer-nano', path, out_norm='layer', **EVERY)

    assert same_outputs(backbone, trained)


def test_the_checkpoint_of_a_training_is_read(tmp_path):
    trained = DAT('nano')
    weights = {f'backbone.{key}': x for key, x in trained.state_dict().items()}
    path = tmp_path / 'epoch_9.pth'
    hub = dict(loss=HistoryBuffer([0.5], [1]))
    torch.save(dict(state_dict=weights, message_hub=hub), path)

    backbone = create_backbone('dat-nano', path)

    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[key]), key


def test_outputs_may_differ_from_those_of_the_file(tmp_path):
    classifier = DAT('nano')
    path = tmp_path / 'classifier.pth'
    torch.save(classifier.state_dict(), path)

    backbone = create_backbone('dat-nano', path, out_indices=(1, 2))

    found = dict(backbone.named_parameters())
    own = dict(classifier.named_parameters())
    shared = [key for key in found if not key.startswith('out_norms.')]
    assert len(shared) > 50
    assert all(torch.equal(found[key], own[key]) for key in shared)
    assert len(backbone.stages) == 3
    assert found['out_norms.class1.weight'].eq(1).all()


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('wrap', ['model', 'prefix', 'detector'])
def test_an_official_file_is_converted(family, wrap, tmp_path, logged):
    trained, official = official_weights(family)
    if wrap == 'prefix':
        content = {f'module.{key}': x for key, x in official.items()}
    elif wrap == 'detector':
        content = {f'backbone.{key}': x for key, x in official.items()}
        content['neck.convs.0.weight'] = torch.ones(1)
    else:
        content = dict(model=official, epoch=299)
    path = tmp_path / 'official.pth'
    torch.save(content, path)

    backbone = create_backbone(f'{family}-nano', path)

    assert same_outputs(backbone, trained)
    assert logged == [f'{path}: official weights, converted to {family}-nano.']


def test_an_official_file_serves_other_outputs(tmp_path):
    trained, official = official_weights('biformer')
    torch.save(official, tmp_path / 'official.pth')

    backbone = create_backbone(
        'biformer-nano', tmp_path / 'official.pth', out_indices=(0, 2)
    )

    for key, tensor in backbone.downsamples.state_dict().items():
        assert torch.equal(tensor, trained.downsamples.state_dict()[key]), key
    assert len(backbone.stages) == 3


def test_the_name_decides_between_archs_of_equal_shapes(tmp_path):
    """DAT's formulations of 2022 and 2023 have the same keys and shapes."""
    _, official = official_weights('dat', 'tiny')
    torch.save(official, tmp_path / 'official.pth')

    create_backbone('dat-tiny', tmp_path / 'official.pth')

    with pytest.raises(UsageError, match=r'official\.pth: .* fit dat, arch .pp-tiny.:'):
        create_backbone('dat-pp-tiny', tmp_path / 'official.pth')


def test_an_official_file_that_does_not_fit_is_an_error(tmp_path):
    _, official = official_weights('shunted')
    del official['block1.0.mlp.fc1.bias']
    path = tmp_path / 'official.pth'
    torch.save(official, path)

    with pytest.raises(
        UsageError,
        match=rf'pretrained: {path}: .*missing keys: block1\.0\.mlp\.fc1\.bias\.$',
    ):
        create_backbone('shunted-nano', path)
    with pytest.raises(
        UsageError,
        match=rf'pretrained: {path}: no weights of dat, neither official nor of '
        r"mmsparse; the keys begin with \['patch_embed1",
    ):
        create_backbone('dat-nano', path)


@pytest.mark.parametrize('source', ['official', 'mmsparse'])
def test_a_classifier_has_the_head_of_the_file(source, tmp_path, logged):
    trained, weights = official_weights('shunted')
    head = weights['head.weight']
    if source == 'mmsparse':
        weights = {f'backbone.{key}': x for key, x in trained.state_dict().items()}
        weights |= {'head.fc.weight': head, 'head.fc.bias': torch.zeros(3)}
    path = tmp_path / 'classifier.pth'
    torch.save(weights, path)

    model = create_model('shunted-nano', path, num_classes=3)

    assert torch.equal(model.head.fc.weight, head)
    assert same_outputs(model.backbone, trained)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3)
    assert len(logged) == (source == 'official')


def test_a_classifier_for_other_classes_has_a_random_head(tmp_path, logged):
    trained, official = official_weights('shunted')
    path = tmp_path / 'classifier.pth'
    torch.save(official, path)

    model = create_model('shunted-nano', path, num_classes=5, drop_path_rate=0.1)

    assert same_outputs(model.backbone, trained)
    assert model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    assert logged[1:] == [
        f'{path} has a linear layer for 3 classes; that for 5 starts from random '
        'weights.'
    ]


def test_a_classifier_may_start_from_random_weights():
    assert create_model('dat-nano')(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda state: state.pop('stages.0.0.mlp.fc1.bias'),
            'missing keys: stages.0.0.mlp.fc1.bias$',
        ),
        (
            lambda state: state.update({'stages.1.7.gamma': torch.zeros(1)}),
            'does not fit biformer-nano; unexpected keys: stages.1.7.gamma$',
        ),
        (
            lambda state: state.update({'stages.0.0.mlp.fc1.bias': torch.zeros(1)}),
            r'size mismatch: stages.0.0.mlp.fc1.bias \(1,\) instead of',
        ),
        (
            lambda state: [state.pop(key) for key in list(state)],
            r"no weights of biformer, .*; the keys begin with \['conv1.weight'\]",
        ),
    ],
    ids=['missing', 'unexpected', 'size', 'other'],
)
def test_a_file_that_does_not_fit_is_an_error(change, message, tmp_path):
    state = BiFormer('nano').state_dict()
    change(state)
    path = tmp_path / 'other.pth'
    torch.save(state or {'conv1.weight': torch.zeros(1)}, path)

    with pytest.raises(UsageError, match=f'pretrained: {path}:? .*{message}'):
        create_backbone('biformer-nano', path)
