"""The weights in the repository, evaluated by tools/test.py."""

import re
from pathlib import Path

import pytest
from digits import dataset

from mmsparse.checkpoint.files import sha256
from mmsparse.zoo import read_metafiles

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A working directory with all validation images of one digit."""
    scans = dataset.load_scans(seed=0)
    settings = dataset.Settings(
        seed=0,
        train_scenes=1,
        val_scenes=1,
        train_images_per_scan=1,
        val_images_per_scan=2,
    )
    splits = dict(train=scans.splits['train'][:10], val=scans.splits['val'])
    few = dataset.Scans(scans.images, scans.labels, splits)
    folder = tmp_path_factory.mktemp('published')
    dataset.build(folder / 'data' / 'digits', few, settings)
    return folder


@pytest.mark.parametrize(
    'weights', sorted((ROOT / 'weights').glob('*.pth')), ids=lambda path: path.stem
)
def test_published_weights_have_the_accuracy_of_the_metafile(weights, folder, run_tool):
    name, _, digits = weights.stem.rpartition('-')
    model = read_metafiles()[name]
    (result,) = model['Results']

    done = run_tool('test.py', ROOT / model['Config'], weights, cwd=folder)

    (found,) = re.findall(r'accuracy/top1: ([\d.]+)', done.stdout)
    one_image = 100 / 720
    expected = pytest.approx(result['Metrics']['Top 1 Accuracy'], abs=one_image)
    assert float(found) == expected
    assert sha256(weights).startswith(digits)
