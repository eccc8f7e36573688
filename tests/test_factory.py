import subprocess
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmsparse import create_backbone, list_backbones
from mmsparse.checkpoint import write_checkpoint
from mmsparse.models import DAT, BiFormer

EVERY = dict(out_indices=(0, 1, 2, 3))


def test_every_arch_has_a_name():
    names = list_backbones()

    assert len(names) == len(set(names)) == 18
    assert {'dat-pp-tiny', 'dat-base-384', 'biformer-stl-nchw', 'shunted-nano'} < {
        *names
    }


@pytest.mark.parametrize('name', ['dat-huge', 'swin-tiny', 'nano', ''])
def test_an_unknown_name_is_answered_with_the_known(name):
    with pytest.raises(ValueError, match=rf"'biformer-base', .*; got '{name}'"):
        create_backbone(name)


def test_no_host_is_needed():
    program = """
import sys
for host in ('mmcv', 'mmdet', 'mmpretrain', 'mmseg'):
    sys.modules[host] = None
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
def test_the_maps_are_told_as_timm_does(name):
    backbone = create_backbone(name, out_indices=(0, 2))

    outs = backbone(torch.rand(1, 3, 64, 64))

    info = backbone.feature_info
    assert info.channels() == [x.shape[1] for x in outs]
    assert info.reduction() == [64 // x.shape[2] for x in outs]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_weights_are_found_in_a_model(suffix, prefix, tmp_path):
    trained = BiFormer('nano', out_norm='layer', **EVERY).eval()
    torch.nn.init.uniform_(trained.out_norms['layer1'].weight)
    weights = {prefix + key: x for key, x in trained.state_dict().items()}
    beside = dict() if not prefix else {'head.fc.bias': torch.zeros(3)}
    path = tmp_path / f'model{suffix}'
    write_checkpoint(path, {**weights, **beside}, meta={})

    backbone = create_backbone('biformer-nano', path, out_norm='layer', **EVERY).eval()

    x = torch.rand(1, 3, 64, 64)
    for out, expected in zip(backbone(x), trained(x), strict=True):
        assert torch.equal(out, expected)


def test_a_checkpoint_of_a_training_is_read(tmp_path):
    trained = DAT('nano')
    weights = {f'backbone.{key}': x for key, x in trained.state_dict().items()}
    path = tmp_path / 'epoch_9.pth'
    hub = dict(loss=HistoryBuffer([0.5], [1]))
    torch.save(dict(state_dict=weights, message_hub=hub), path)

    backbone = create_backbone('dat-nano', path)

    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[key]), key


def test_other_outputs_than_those_of_a_classifier(tmp_path):
    classifier = DAT('nano').eval()
    path = tmp_path / 'classifier.pth'
    torch.save(classifier.state_dict(), path)

    backbone = create_backbone('dat-nano', path, out_indices=(1, 2)).eval()

    found = dict(backbone.named_parameters())
    own = dict(classifier.named_parameters())
    assert torch.equal(
        found['stages.2.1.attn.relative_position_bias_table'],
        own['stages.2.1.attn.relative_position_bias_table'],
    )
    assert len(backbone.stages) == 3
    assert found['out_norms.class1.weight'].eq(1).all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: state.pop('stages.0.0.mlp.fc1.bias'), 'missing: stages.0.0.mlp'),
        (
            lambda state: state.update({'stages.1.7.gamma': torch.zeros(1)}),
            'does not fit BiFormer; unexpected: stages.1.7.gamma',
        ),
        (
            lambda state: state.update({'stages.0.0.mlp.fc1.bias': torch.zeros(1)}),
            'size mismatch for stages.0.0.mlp.fc1.bias',
        ),
        (
            lambda state: [state.pop(key) for key in list(state)],
            r"no backbone of ours; its keys begin with \['conv1.weight'\]",
        ),
    ],
    ids=['missing', 'unexpected', 'shape', 'other'],
)
def test_a_file_that_does_not_fit_is_told(change, message, tmp_path):
    state = BiFormer('nano').state_dict()
    change(state)
    path = tmp_path / 'other.pth'
    torch.save(state or {'conv1.weight': torch.zeros(1)}, path)

    with pytest.raises(ValueError, match=message):
        create_backbone('biformer-nano', path)
