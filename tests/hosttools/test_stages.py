"""Features of stages: extraction, hooks of distillation, and wrapping by FSDP."""

import re

import pytest
import torch
from mmpretrain import FeatureExtractor
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel

from mmsparse import create_backbone

BACKBONES = pytest.mark.parametrize('family', ['dat', 'biformer', 'shunted'])


def test_features_of_an_image_are_extracted(
    example, model_files, small_digits, monkeypatch
):
    monkeypatch.chdir(small_digits)
    config, weights = model_files('mmpretrain')
    image = next((small_digits / 'data/digits/classification/val').rglob('*.jpg'))
    program = example('FeatureExtractor').replace('CHECKPOINT.pth', str(weights))
    program = program.replace('digit.jpg', str(image))

    result = {}
    exec(re.sub("'configs/.*'", repr(str(config)), program), result)

    assert result['feature_map'].shape == (256, 2, 2)
    torch.testing.assert_close(result['feature_map'].mean((1, 2)), result['vector'])


@pytest.mark.parametrize(
    ('stage', 'shape'),
    [('backbone', (2, 256, 2, 2)), ('neck', (2, 256)), ('pre_logits', (2, 256))],
)
def test_a_classifier_extracts_the_features_of_a_stage(stage, shape, model_files):
    extract = FeatureExtractor(*map(str, model_files('mmpretrain')))

    features = extract.model.extract_feat(torch.rand(2, 3, 64, 64), stage=stage)

    assert (features[-1] if isinstance(features, tuple) else features).shape == shape


@BACKBONES
def test_recorders_of_distillation_see_the_stages(family, example):
    program = example('register_forward_hook').replace('biformer', family)

    result = {}
    exec(program, result)
    result['loss'].backward()

    assert {name: x.shape for name, x in result['recorded'].items()} == {
        'student': (2, 128, 4, 4),
        'teacher': (2, 128, 4, 4),
    }
    stages = result['student'].stages
    assert [i for i, stage in enumerate(stages) if has_gradient(stage)] == [0, 1, 2]
    assert not has_gradient(result['teacher'])


def has_gradient(module):
    return any(x.grad is not None for x in module.parameters())


@pytest.fixture
def process_group():
    store = distributed.HashStore()
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@BACKBONES
@pytest.mark.filterwarnings('ignore')  # of FSDP without a GPU
def test_fsdp_wraps_every_stage(family, example, process_group):
    model, x = create_backbone(f'{family}-nano').eval(), torch.rand(1, 3, 64, 64)
    expected = model(x)[-1]
    result = {}
    exec(example('ModuleWrapPolicy'), result)

    wrapped = FullyShardedDataParallel(
        model, auto_wrap_policy=result['policy'], device_id=torch.device('cpu')
    )

    units = [type(stage) for stage in wrapped.module.stages]
    assert units == [FullyShardedDataParallel] * 4
    out = wrapped(x)[-1]
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(map(has_gradient, wrapped.module.stages))
