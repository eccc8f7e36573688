"""Files of pretrained weights, and norms that need them."""

import pytest
from mmengine.config import Config
from mmengine.model import PretrainedInit

from mmsparse.checks import check_data
from mmsparse.checks.pretrained import check_pretrained, untrained_norms
from mmsparse.errors import MissingFileError


def test_a_missing_file_of_pretrained_weights_is_named(tmp_path):
    path = tmp_path / 'small_in1k.pth'
    start = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[start]))))

    with pytest.raises(MissingFileError, match=f'no such file: {path}') as info:
        check_pretrained(cfg)
    assert info.value.path == str(path)

    path.touch()
    check_pretrained(cfg)
    cfg.model.backbone.init_cfg[0].checkpoint = 'torchvision://resnet50'
    check_pretrained(cfg)


def test_a_path_below_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    start = dict(type='Pretrained', checkpoint='~/small.pth')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=start))))

    with pytest.raises(MissingFileError, match=r'no such file: ~/small\.pth'):
        check_pretrained(cfg)
    (tmp_path / 'small.pth').touch()
    check_pretrained(cfg)


def test_types_of_pure_python_configs_are_known():
    backbone = dict(init_cfg=dict(type=PretrainedInit, checkpoint='no.pth'))

    with pytest.raises(MissingFileError, match=r'checkpoint: no such file: no\.pth'):
        check_pretrained(Config(dict(model=dict(backbone=backbone))))


def test_a_missing_file_to_load_is_named():
    with pytest.raises(MissingFileError, match=r'load_from: no such file: no\.pth'):
        check_pretrained(Config(dict(load_from='no.pth')))


@pytest.mark.parametrize('part', ['model', 'model.backbone'])
def test_a_missing_file_of_deprecated_settings_is_named(part):
    cfg = Config(dict(model=dict(backbone={})))
    cfg.merge_from_dict({f'{part}.pretrained': 'no.pth'})

    with pytest.raises(MissingFileError, match=rf'{part}.pretrained: no such file: no'):
        check_pretrained(cfg)
    cfg.merge_from_dict({f'{part}.pretrained': 'open-mmlab://resnet50'})
    check_pretrained(cfg)


def test_norms_without_statistics_are_noted():
    backbone = dict(type='mmsparse.BiFormer', norm_eval=True)
    cfg = Config(dict(model=dict(backbone=backbone)))
    (note,) = untrained_norms(cfg)
    assert note.startswith(
        'model.backbone.norm_eval=True keeps the statistics of Batch'
    )

    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='a.pth')
    assert untrained_norms(cfg) == []


def test_they_are_noted_before_a_training(pets):
    pets.model.backbone = dict(type='mmsparse.BiFormer', norm_eval=True)

    (note,) = check_data(pets, 'mmdet')
    assert note in untrained_norms(pets)
