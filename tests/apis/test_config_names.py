"""The hosts' inferencers and functions with the names of our configs."""

import re
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from forked import Forked
from mmdet.apis import DetInferencer
from mmengine.infer import BaseInferencer
from mmengine.registry import DefaultScope
from mmpretrain.apis.model import ModelHub
from mmseg.apis import MMSegInferencer

import mmsparse
from mmsparse.apis import build_model, config_names, read_config
from mmsparse.errors import UsageError
from mmsparse.zoo import find_config, read_index

ROOT = Path(__file__).parents[2]
CLASSIFIER = 'biformer-nano_1xb32-9e_digits'
DETECTOR = 'focus-detr_biformer-nano_1xb4-4e_digits'
SEGMENTOR = 'fpn_biformer-nano_1xb8-1600i_digits'
IMAGE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def registered(monkeypatch):
    """The names are registered during a test, by two calls."""
    read_host_index = BaseInferencer._get_models_from_metafile
    patched = staticmethod(read_host_index)
    monkeypatch.setattr(BaseInferencer, '_get_models_from_metafile', patched)
    monkeypatch.setattr(DefaultScope, '_instance_dict', {})  # inferencers change it
    mmsparse.register_configs()
    mmsparse.register_configs()
    yield
    for name in read_index():
        ModelHub._models_dict.pop(name, None)


def test_the_hosts_do_not_know_the_names_before():
    with pytest.raises(ValueError, match=f'Cannot find model: {DETECTOR} in mmdet'):
        DetInferencer(DETECTOR)
    with pytest.raises(ValueError, match=f'Failed to find model "{CLASSIFIER}"'):
        mmpretrain.get_model(CLASSIFIER)


def test_each_host_lists_the_configs_that_it_builds(registered):
    for host, inferencer in (('mmdet', DetInferencer), ('mmseg', MMSegInferencer)):
        names = {x.name for x in read_index().values() if x.host == host}
        listed = inferencer.list_models(host)
        assert names == {*read_index()} & {*listed}
        assert {*map(listed.count, names)} == {1}
        assert len(listed) > 3 * len(names)  # with those of the host
    classifiers = {x.name for x in read_index().values() if x.host == 'mmpretrain'}
    assert classifiers == {*read_index()} & {*mmpretrain.list_models()}
    assert CLASSIFIER in mmpretrain.list_models('*biformer*')
    assert 'resnet50_8xb32_in1k' in mmpretrain.list_models()


def test_a_classifier_has_its_config_and_metadata(registered):
    with torch.device('meta'):
        model = mmpretrain.get_model(CLASSIFIER.upper())

    assert type(model.backbone).__name__ == 'BiFormer'
    assert model._config.filename == str(find_config(CLASSIFIER))
    assert model._metainfo.results[0].dataset == 'digits'


def test_a_classifier_without_weights_warns(registered):
    with pytest.warns(UserWarning, match='Unable to find pre-defined checkpoint'):
        mmpretrain.ImageClassificationInferencer('biformer-pico_1xb32-12e_digits')


def test_weights_in_the_repository_are_loaded(registered):
    expected = mmsparse.create_model('biformer-nano', pretrained=True).state_dict()

    model = mmpretrain.get_model(CLASSIFIER, pretrained=True)
    inferencer = mmpretrain.ImageClassificationInferencer(CLASSIFIER)

    for loaded in (model.state_dict(), inferencer.model.state_dict()):
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_detector_without_weights_warns_and_predicts(registered):
    with pytest.warns(UserWarning, match='Checkpoint is not loaded'):
        detect = DetInferencer(DETECTOR, device='cpu', show_progress=False)

    assert type(detect.model).__name__ == 'FocusDETR'
    assert len(detect(IMAGE)['predictions'][0]['scores']) == 50


def test_weights_of_a_metafile_are_loaded(registered, tmp_path, monkeypatch):
    cfg = read_config(SEGMENTOR)
    expected = build_model(cfg).state_dict()
    torch.save(dict(state_dict=expected, meta={}), tmp_path / 'published.pth')
    entry = dict(vars(read_index()[SEGMENTOR]), weights=str(tmp_path / 'published.pth'))
    index = {SEGMENTOR: type(read_index()[SEGMENTOR])(**entry)}
    monkeypatch.setattr(config_names, 'read_index', lambda: index)

    loaded = MMSegInferencer(SEGMENTOR, device='cpu').model.state_dict()

    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize('suffix', ['', '.py'])
def test_a_config_is_found_by_its_name(suffix):
    path = ROOT / 'configs' / 'biformer' / f'{CLASSIFIER}.py'

    assert find_config(CLASSIFIER + suffix) == path
    assert read_config(CLASSIFIER + suffix).filename == str(path)


def test_an_unknown_name_has_the_similar_ones():
    with pytest.raises(UsageError) as info:
        read_config('focus-detr_r50_8xb2_coco')

    text, _, names = str(info.value).partition('; similar names: ')
    assert text == 'config: no such file: focus-detr_r50_8xb2_coco'
    assert 'focus-detr_r50_8xb2-12e_coco' in names.split(', ')
    with pytest.raises(UsageError, match=r'no such file: xyz\.py$'):
        read_config('xyz.py')


def snippets():
    text = (ROOT / 'docs' / 'inferencers.md').read_text()
    return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


@pytest.fixture(scope='module')
def trained(small_digits, tmp_path_factory):
    """A working directory with digits and random weights where training puts them."""
    folder = tmp_path_factory.mktemp('trained')
    (folder / 'data').symlink_to(small_digits / 'data')
    (folder / 'weights').symlink_to(ROOT / 'weights')
    for name, file in ((DETECTOR, 'epoch_4.pth'), (SEGMENTOR, 'iter_1600.pth')):
        path = folder / 'work_dirs' / name / file
        path.parent.mkdir(parents=True)
        weights = build_model(read_config(name)).state_dict()
        torch.save(dict(state_dict=weights, meta={}), path)
    return folder


@pytest.mark.parametrize(
    ('snippet', 'printed'),
    zip(snippets(), ('[', '(128, 128)', f"['{CLASSIFIER}', "), strict=True),
    ids=['mmdet', 'mmseg', 'mmpretrain'],
)
def test_the_snippets_of_the_page_run(snippet, printed, trained, tmp_path):
    program = tmp_path / 'program.py'
    digit = next((trained / 'data/digits/classification/val/3').iterdir()).name
    program.write_text(snippet.replace('0045_0.jpg', digit))

    done = Forked(program, cwd=trained, PYTHONPATH=str(ROOT)).finish()

    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
