"""What the quickstart trains; its parts are tested by the commands they are."""

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
