import copy
from pathlib import Path

import pytest
import torch
from benchmark import measure
from benchmark.segmentor import (
    TIME,
    prediction_candidate,
    training_candidates,
)

from mmsparse.apis import read_config
from mmsparse.errors import UsageError

CONFIG = (
    Path(__file__).parents[3]
    / 'configs/biformer/fpn_biformer-nano_1xb8-1600i_digits.py'
)
CPU = torch.device('cpu')


@pytest.fixture
def cfg():
    return read_config(str(CONFIG))


def test_checkpointing_takes_less_memory(cfg):
    before = copy.deepcopy(cfg._cfg_dict)

    plain, with_cp = measure(training_candidates(cfg, (64, 96), 2, CPU), 1, CPU)

    assert cfg._cfg_dict == before
    assert (plain.name, with_cp.name) == ('plain', 'with_cp')
    assert 0 < with_cp.peak_bytes < plain.peak_bytes
    assert plain.median_seconds(TIME) > 0


def test_the_whole_image_is_predicted_whatever_the_config_says(cfg):
    cfg.model.test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(1, 1))

    (predicted,) = measure([prediction_candidate(cfg, (64, 96), CPU)], 1, CPU)

    assert predicted.name == 'predict'
    assert predicted.peak_bytes > 64 * 96 * 4


def test_a_backbone_without_with_cp_raises_an_error(cfg):
    cfg.model.backbone = dict(type='FastSCNN')

    with pytest.raises(UsageError, match='one that has with_cp; got FastSCNN'):
        training_candidates(cfg, (64, 64), 1, CPU)
