"""What the quickstart trains; its parts are tested by the commands they are."""

import sys
from pathlib import Path

import pytest
import quickstart

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize('backbone', quickstart.BACKBONES)
def test_every_backbone_has_a_config_for_each_of_the_three_tasks(backbone):
    plan = quickstart.tasks(backbone)

    assert [task.name for task in plan] == [
        'classification',
        'segmentation',
        'detection',
    ]
    for task in plan:
        assert (CONFIGS / task.config).is_file()


def test_a_place_for_results_that_is_a_file_is_told(tmp_path, monkeypatch):
    (tmp_path / 'a.txt').touch()
    command = ['quickstart.py', '--out', str(tmp_path / 'a.txt')]
    monkeypatch.setattr(sys, 'argv', command)

    with pytest.raises(SystemExit, match=r'--out must be a folder; .*a\.txt is a file'):
        quickstart.main()
