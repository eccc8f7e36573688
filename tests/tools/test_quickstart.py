"""The quickstart's configs and files, without training."""

import json
import runpy
import sys

from _cli import run

import numpy as np
import pytest
import quickstart.tasks as quickstart
from PIL import Image
from quickstart.report import Row

from mmsparse.models.backbones import BACKBONES


def test_every_family_of_backbones_is_a_choice():
    assert set(quickstart.MODELS) == set(BACKBONES)


@pytest.mark.parametrize('family', quickstart.MODELS)
def test_every_family_has_a_config_for_each_task(family):
    configs = quickstart.find_configs(family)

    assert list(configs) == ['classification', 'segmentation', 'detection']
    for path in configs.values():
        assert quickstart.MODELS[family] in path.stem


def test_the_summary_is_a_record_of_measurements(tmp_path, capsys):
    results = [
        quickstart.Result('accuracy', 97.25, 83.4, 1_530_000, 'x.pth', task, 'c/x.py')
        for task in quickstart.TASKS
    ]
    panels = (np.zeros((8, 8, 3), np.uint8),) * 3
    rows = [Row(task, panels) for task in quickstart.TASKS]

    summary, figure = quickstart.write(tmp_path, 'dat', results, rows)

    record = json.loads(summary.read_text())
    text = ('title', 'what', 'machine', 'versions', 'command', 'commit', 'date')
    assert all(isinstance(record[name], str) for name in text)
    row = dict(metric='accuracy', result='97.2', training='1:23 min')
    assert row.items() <= record['figures']['detection'].items()
    assert record['configs']['detection'] == 'c/x.py'
    assert record['results'][0]['parameters'] == 1_530_000
    assert Image.open(figure).width > 500
    assert 'detection' in capsys.readouterr().out


def test_a_file_as_output_folder_is_an_error(tmp_path, monkeypatch):
    (tmp_path / 'a.txt').touch()
    command = ['quickstart.py', '--out', str(tmp_path / 'a.txt')]
    monkeypatch.setattr(sys, 'argv', command)
    script = runpy.run_path(str(quickstart.ROOT / 'tools' / 'quickstart.py'))

    with pytest.raises(SystemExit, match=r'--out must be a folder; .*a\.txt is a file'):
        run(script['main'])
