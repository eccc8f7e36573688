"""What a model loads from load_from, and hosts' backbones from their init_cfg."""

import re

import pytest
import torch
from mmdet.models.backbones import ResNet, SwinTransformer
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel, BaseTTAModel, PretrainedInit
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.models import ResNet as PretrainResNet
from torch import nn

from mmsparse.checkpoint import pretrained
from mmsparse.conversion.families import FAMILIES
from mmsparse.engine.hooks import SafeCheckpoints, safe_checkpoints
from mmsparse.errors import OfficialWeightsError, UsageError
from mmsparse.models import DAT


class Model(BaseModel):
    """A backbone and a head."""

    def __init__(self, backbone=None, width=4):
        super().__init__()
        self.backbone = backbone or DAT('nano')
        self.head = nn.Linear(width, 2)

    def forward(self, inputs, data_samples=None, mode='loss'):
        return self.backbone(inputs)


class TTA(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.fixture
def logged(logged_by):
    """Lines about loaded weights."""
    return logged_by(safe_checkpoints, pretrained)


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Return a function that does what Runner.train does before the first epoch."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))

    def start(model, content=None, hooks=(), resume=False):
        path = None
        if content is not None:
            path = str(tmp_path / 'a.pth')
            torch.save(content, path)
        hook = SafeCheckpoints()
        runner = Runner(
            model,
            work_dir=str(tmp_path),
            custom_hooks=[hook, *hooks],
            load_from=path,
            default_scope='mmengine',
            experiment_name=f'{tmp_path.name}-{id(model)}',
        )
        runner._resume = resume
        runner.call_hook('before_run')
        runner._init_model_weights()
        if path:
            runner.load_checkpoint(path)
        hook.before_train(runner)
        assert not hook._observers

    return start


def test_one_line_counts_the_weights_of_load_from(start, logged, tmp_path):
    other = Model(width=7)

    start(Model(), dict(state_dict=other.state_dict(), meta={}))

    assert logged == [
        f'load_from: 185 of 186 weights of Model from {tmp_path}/a.pth; not in it: '
        'head.weight (2, 7) instead of (2, 4)'
    ]


def test_a_classifier_may_start_a_detector(start, logged):
    weights = {f'backbone.{k}': x for k, x in DAT('nano').state_dict().items()}

    start(Model(), dict(state_dict=weights, meta={}))

    assert logged[0].startswith('load_from: 184 of 186 weights of Model from')


def official(family='dat', prefix=''):
    weights = FAMILIES[family].backbone('nano').state_dict()
    return {
        prefix + FAMILIES[family].official(f'backbone.{key}', 'nano'): x
        for key, x in weights.items()
    }


DEFORMABLE = 'transformer.encoder.layers.0.self_attn.sampling_offsets.weight'
MISTAKES = {
    'official': (
        lambda: dict(model=official()),
        'it is an official checkpoint of dat; convert it, see docs/migration.md',
    ),
    'official, in a detector': (
        lambda: official('biformer', 'backbone.'),
        'it is an official checkpoint of biformer; convert it, see docs/migration.md',
    ),
    'official detector': (
        lambda: {DEFORMABLE: torch.ones(1)},
        'it is an official checkpoint of deformable_detr; convert it',
    ),
    'backbone alone': (
        lambda: DAT('nano').state_dict(),
        "set model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': 'PATH'} "
        'instead',
    ),
    'another prefix': (
        lambda: {f'encoder.{k}': x for k, x in DAT('nano').state_dict().items()},
        "set model.backbone.init_cfg={'type': 'Pretrained', 'checkpoint': 'PATH', "
        "'prefix': 'encoder.'} instead",
    ),
    'another model': (
        lambda: {'layer1.weight': torch.ones(1), 'head.weight': torch.ones(2, 4)},
        "its keys begin with ['layer1.weight', 'head.weight']",
    ),
    'another arch': (
        lambda: Model(
            DAT(dict(base='nano', embed_dims=(64, 128, 256, 512)))
        ).state_dict(),
        'other sizes, as of another arch: backbone.downsamples.0.0.weight (32, 3, 3, 3)'
        ' instead of (16, 3, 3, 3), ',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_load_from_without_the_backbone_is_an_error(mistake, start, tmp_path):
    content, message = MISTAKES[mistake]

    with pytest.raises(UsageError) as info:
        start(Model(), content())

    path = str(tmp_path / 'a.pth')
    text = str(info.value)
    assert re.match(
        rf'load_from: \d+ of 184 weights of the backbone are in {path}; ', text
    )
    assert message.replace('PATH', path) in text
    assert '\n' not in text
    assert isinstance(info.value, OfficialWeightsError) == ('official' in mistake)


def test_a_training_resumes_only_from_its_own_model(start, logged, tmp_path):
    model = Model()
    start(Model(), model.state_dict(), resume=True)
    assert not logged

    other = dict(model.state_dict())
    other.popitem()
    with pytest.raises(
        UsageError,
        match=rf'resume: {tmp_path}/a\.pth is of another model, without \S+; resume '
        'with the config of the training, or start a new one with load_from',
    ):
        start(Model(), other, resume=True)


def test_a_model_without_backbone_is_not_judged(start, logged, tmp_path):
    model = Model()
    model.encoder = model.backbone
    del model.backbone

    start(model, {'other.weight': torch.ones(1)})

    assert logged[0].startswith('load_from: 0 of 186 weights of Model from')


@pytest.mark.parametrize('wrap', ['ema', 'tta'])
def test_copies_and_wrappers_are_counted_once(wrap, start, logged):
    content = dict(state_dict=Model().state_dict(), meta={})
    hooks = [EMAHook()] if wrap == 'ema' else []
    model = TTA(Model()) if wrap == 'tta' else Model()

    start(model, content, hooks)

    (line,) = logged
    assert line.startswith('load_from: 186 of 186 weights of Model from')


@pytest.mark.parametrize('kind', [ResNet, PretrainResNet], ids=['mmdet', 'mmpretrain'])
@pytest.mark.parametrize('type', ['Pretrained', PretrainedInit], ids=['name', 'class'])
def test_files_of_other_backbones_are_counted(kind, type, start, logged, tmp_path):
    path = str(tmp_path / 'r50.pth')
    weights = kind(50).state_dict()
    del weights['layer1.0.conv1.weight']
    torch.save(weights, path)
    backbone = kind(50, init_cfg=dict(type=type, checkpoint=path))

    start(Model(backbone))

    assert logged == [
        f'model.backbone.init_cfg: 264 of 265 weights of ResNet from {path}; not in '
        'it: layer1.0.conv1.weight'
    ]


@pytest.mark.parametrize('kind', [ResNet, PretrainResNet], ids=['mmdet', 'mmpretrain'])
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (official, 'it is an official checkpoint of dat; convert it'),
        (
            lambda: {f'backbone.{k}': x for k, x in ResNet(50).state_dict().items()},
            r"set prefix='backbone\.'",
        ),
    ],
    ids=['official', 'prefix'],
)
def test_wrong_files_of_other_backbones_are_an_error(
    kind, content, message, start, tmp_path
):
    path = str(tmp_path / 'wrong.pth')
    torch.save(content(), path)
    model = Model(kind(50, init_cfg=dict(type='Pretrained', checkpoint=path)))

    with pytest.raises(
        UsageError,
        match=rf'^model\.backbone\.init_cfg: 0 of 265 weights of ResNet are in {path}; '
        + message,
    ):
        start(model)


def swin(**arguments):
    return SwinTransformer(
        embed_dims=12,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        window_size=4,
        **arguments,
    )


def test_a_backbone_that_renames_official_keys_is_not_judged_by_them(
    start, logged, tmp_path
):
    """mmdet's Swin converts the weights of its authors itself."""
    own = swin().state_dict()
    names = dict([('stages', 'layers'), ('w_msa.', ''), ('ffn.layers.0.0', 'mlp.fc1')])
    names |= {'ffn.layers.1': 'mlp.fc2', 'patch_embed.projection': 'patch_embed.proj'}
    weights = {}
    for key, tensor in own.items():
        for old, new in names.items():
            key = key.replace(old, new)
        if not key.startswith('norm'):
            weights[key] = tensor
    torch.save(dict(model=weights), tmp_path / 'swin.pth')
    torch.save(dict(model=official()), tmp_path / 'wrong.pth')
    cfg = ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'))

    start(Model(swin(init_cfg=cfg, convert_weights=True)))

    assert len(weights.keys() & own.keys()) < 0.1 * len(own)
    (line,) = logged
    loaded, total = map(
        int, re.search(r'(\d+) of (\d+) weights of Swin', line).groups()
    )
    assert loaded > 0.8 * total
    cfg['checkpoint'] = str(tmp_path / 'wrong.pth')
    with pytest.raises(OfficialWeightsError, match=r'model\.backbone\.init_cfg: 0 of'):
        start(Model(swin(init_cfg=cfg, convert_weights=True)))


def test_a_backbone_of_mmsparse_is_counted_once(start, logged, tmp_path):
    path = str(tmp_path / 'dat.pth')
    torch.save(DAT('nano').state_dict(), path)

    start(Model(DAT('nano', init_cfg=dict(type='Pretrained', checkpoint=path))))

    assert logged == [f'init_cfg: 184 of 184 weights of DAT from {path}']
