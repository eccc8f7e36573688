"""The weights in the repository, evaluated by tools/test.py."""

import re
from pathlib import Path

import pytest
import yaml

from mmsparse.checkpoint.files import sha256

ROOT = Path(__file__).parents[1]


def test_published_weights_have_the_accuracy_of_the_metafile(small_digits, run_tool):
    (weights,) = (ROOT / 'weights').iterdir()
    name, _, digits = weights.stem.rpartition('-')
    metafile = yaml.safe_load((ROOT / 'configs/biformer/metafile.yml').read_text())
    (model,) = (model for model in metafile['Models'] if model['Name'] == name)
    (result,) = model['Results']

    done = run_tool('test.py', ROOT / model['Config'], weights, cwd=small_digits)

    (found,) = re.findall(r'accuracy/top1: ([\d.]+)', done.stdout)
    one_image = 100 / 720
    expected = pytest.approx(result['Metrics']['Top 1 Accuracy'], abs=one_image)
    assert float(found) == expected
    assert sha256(weights).startswith(digits)
