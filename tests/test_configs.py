from pathlib import Path

import pytest
import yaml

from mmsparse.hosts import build_model, read_config

ROOT = Path(__file__).parents[1]
LEAVES = sorted(
    path
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parent.name
)


def build(path):
    return build_model(read_config(str(path)))


@pytest.mark.parametrize('path', LEAVES, ids=lambda path: path.stem)
def test_every_config_parses_and_builds_its_model(path):
    model = build(path)

    assert any(type(m).__module__.startswith('mmsparse.') for m in model.modules())


def metafile_models():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for metafile in index['Import']:
        yield from yaml.safe_load((ROOT / metafile).read_text())['Models']


MODELS = {model['Name']: model for model in metafile_models()}


def test_every_config_stands_in_a_metafile_under_its_name():
    assert {path.stem for path in LEAVES} == set(MODELS)
    for name, model in MODELS.items():
        assert (ROOT / model['Config']).stem == name
        assert (ROOT / model['Config']).is_file()


@pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)
def test_the_metafile_has_the_number_of_parameters(model):
    built = build(ROOT / model['Config'])

    parameters = sum(parameter.numel() for parameter in built.parameters())
    assert parameters == model['Metadata']['Parameters']
