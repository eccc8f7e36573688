"""Building the model of a config, and loading weights."""

import sys
from pathlib import Path

import pytest
import torch

from mmsparse.apis import build_model, build_runner, load_weights, read_config
from mmsparse.conversion.families import FAMILIES
from mmsparse.errors import OfficialWeightsError, UsageError
from mmsparse.models import BiFormer

CLASSIFIER = str(
    Path(__file__).parents[2] / 'configs/biformer/biformer-nano_1xb32-9e_digits.py'
)


def test_a_classifier_normalizes_as_its_config_says():
    cfg = read_config(CLASSIFIER)

    model = build_model(cfg)

    assert model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
    assert 'data_preprocessor' not in cfg.model


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backbone.arch': 'huge'}, r"BiFormer: arch must be one of .*; got 'huge'"),
        (
            {'head.num_classes': [2]},
            r'LinearClsHead: TypeError: .* \(.*linear_head\.py',
        ),
        ({'head': 3}, 'TypeError: .*int'),
        ({'backbone': 3}, 'TypeError: .*int'),
    ],
    ids=['value', 'class', 'no dict', 'no backbone'],
)
def test_an_invalid_setting_is_an_error_in_one_line(change, message):
    options = {f'model.{key}': value for key, value in change.items()}

    with pytest.raises(UsageError, match=rf'^config: .*{message}'):
        build_model(read_config(CLASSIFIER, options))


def test_an_error_of_the_machine_keeps_its_traceback(monkeypatch):
    cfg = read_config(CLASSIFIER)

    def fail(*args, **kwargs):
        raise RuntimeError('CUDA error')

    monkeypatch.setattr('mmpretrain.models.LinearClsHead.__init__', fail)
    with pytest.raises(RuntimeError, match='CUDA error'):
        build_model(cfg)


def save_official(path):
    backbone = BiFormer('nano').state_dict()
    official = FAMILIES['biformer'].official
    weights = {official(f'backbone.{k}', 'nano'): x for k, x in backbone.items()}
    torch.save(dict(model=weights), path)


def save_backbone(path):
    torch.save(BiFormer('nano').state_dict(), path)


def save_wrapped(path):
    model = build_model(read_config(CLASSIFIER))
    torch.save({f'model.{k}': x for k, x in model.state_dict().items()}, path)


@pytest.mark.parametrize(
    ('save', 'error', 'message'),
    [
        (
            save_official,
            OfficialWeightsError,
            'it is an official checkpoint of biformer; convert it, see docs/migration',
        ),
        (
            save_backbone,
            UsageError,
            r"it has weights of the backbone alone, under the prefix ''; train",
        ),
        (
            save_wrapped,
            UsageError,
            r"its keys have the prefix 'model\.'; remove it from them$",
        ),
    ],
    ids=['official', 'backbone', 'prefix'],
)
def test_weights_that_do_not_fit_have_a_reason(save, error, message, tmp_path):
    save(tmp_path / 'a.pth')
    model = build_model(read_config(CLASSIFIER))

    with pytest.raises(
        error,
        match=rf'^checkpoint: \S+a\.pth does not fit the configuration; {message}',
    ):
        load_weights(model, str(tmp_path / 'a.pth'))


def test_weights_that_nearly_fit_have_a_list_of_keys(tmp_path):
    model = build_model(read_config(CLASSIFIER))
    weights = model.state_dict()
    del weights['head.fc.bias']
    torch.save(weights, tmp_path / 'a.pth')

    with pytest.raises(UsageError, match=r'missing keys: head\.fc\.bias$'):
        load_weights(model, str(tmp_path / 'a.pth'))


def logging_to_tensorboard(work_dir):
    cfg = read_config(CLASSIFIER)
    cfg.visualizer.vis_backends = [dict(type='TensorboardVisBackend')]
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    cfg.visualizer.name = work_dir.name
    return build_runner(cfg)


def test_a_library_that_is_not_installed_is_an_error_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)

    with pytest.raises(
        UsageError,
        match=r'^config: CheckedRunner: ImportError: .*pip install .*tensorboard',
    ):
        logging_to_tensorboard(tmp_path)


def test_curves_are_logged_for_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')

    runner = logging_to_tensorboard(tmp_path)
    runner.visualizer.add_scalar('loss', 0.5)
    runner.visualizer.close()

    assert list(tmp_path.glob('*/vis_data/events.out.tfevents.*'))
