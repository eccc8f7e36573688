"""Checkpoints of mmengine and of others, read for mmengine without their code."""

import argparse
import io
import os
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmsparse.checkpoint import mmengine, safe_pickle
from mmsparse.checkpoint.mmengine import load_safely, register_safe_loader
from mmsparse.errors import UsageError

WEIGHTS = {'weight': torch.ones(3, 2), 'bias': torch.zeros(3)}


@pytest.fixture
def safe_loader(monkeypatch):
    """Register the loader for this test alone."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    register_safe_loader()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'epoch_1.pth'


class Call:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize('module', [b'pathlib', b'pathlib._local'])
def test_a_path_of_any_python_is_accepted(module):
    file = io.BytesIO(b'c' + module + b"\nPosixPath\n(S'a'\ntR.")

    assert safe_pickle.load(file).source == f'{module.decode()}.PosixPath'


def test_values_of_a_training_are_rebuilt(path):
    buffer = HistoryBuffer([1.5, 2.5, 5.0], [1, 1, 2])
    values = dict(
        best=np.float64(81.5),
        array=np.arange(6, dtype='>i4').reshape(2, 3),
        columns=np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]),
        empty=np.zeros((0, 4), dtype=bool),
        names=np.array(['a', 'bc']),
        stages={1, 2},
        milestones=Counter([8, 11]),
        pair=(np.float32(0.5), [None, 'x']),
    )
    torch.save(dict(state_dict=WEIGHTS, hub=dict(loss=buffer), values=values), path)

    read = load_safely(str(path))

    assert isinstance(read['hub']['loss'], HistoryBuffer)
    assert read['hub']['loss'].data[0].tolist() == [1.5, 2.5, 5.0]
    assert read['hub']['loss'].statistics('max') == 5.0
    assert read['hub']['loss'].mean() == buffer.mean()
    for name, value in values.items():
        np.testing.assert_equal(read['values'][name], value)
        assert type(read['values'][name]) is type(value)
    assert read['values']['array'].dtype == values['array'].dtype
    assert read['values']['array'].flags.writeable


def test_mmengine_uses_the_safe_loader(safe_loader, path):
    linear = torch.nn.Linear(2, 3)
    torch.save(dict(state_dict=WEIGHTS, args=argparse.Namespace(lr=1)), path)

    load_checkpoint(linear, str(path))

    assert torch.equal(linear.weight, WEIGHTS['weight'])


def test_mmengine_runs_no_code(safe_loader, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=WEIGHTS, hub=Call(os.mkdir, 'ran')), path)

    with pytest.raises(UsageError, match=rf'{path} is refused: .*mkdir'):
        load_checkpoint(torch.nn.Linear(2, 3), str(path))

    assert list(tmp_path.iterdir()) == [path]


def test_the_text_of_a_config_is_dropped(path):
    torch.save(dict(state_dict=WEIGHTS, meta=dict(config='x = 1', epoch=3)), path)

    assert load_safely(str(path))['meta'] == dict(epoch=3)


def test_objects_that_resuming_does_not_need_are_dropped_with_a_warning(
    path, monkeypatch
):
    warnings = []
    monkeypatch.setattr(mmengine, 'print_log', lambda text, **_: warnings.append(text))
    thing, objects = argparse.Namespace(lr=1), np.array([None, 1], dtype=object)
    hub = dict(runtime_info=dict(thing=[thing], iter=3), resumed_keys=dict(iter=True))
    torch.save(dict(state_dict=WEIGHTS, message_hub=hub, args=thing, x=objects), path)

    read = load_safely(str(path))

    assert read.keys() == {'state_dict', 'message_hub'}
    assert read['message_hub']['runtime_info'] == dict(iter=3)
    assert [text.split(' is left out')[0] for text in warnings] == [
        f'{path}: message_hub: runtime_info: thing',
        f'{path}: args',
        f'{path}: x',
    ]


def test_objects_within_the_optimizer_are_refused(path):
    optimizer = dict(state={0: dict(step=argparse.Namespace())})
    torch.save(dict(state_dict=WEIGHTS, optimizer=optimizer), path)

    with pytest.raises(
        UsageError, match=rf'{path}: optimizer has <argparse.Namespace>'
    ):
        load_safely(str(path))


def broken_history(**changes):
    buffer = HistoryBuffer([1.0], [1])
    buffer.__dict__.update(changes)
    return buffer


@pytest.mark.parametrize(
    'value',
    [
        broken_history(_log_history=None),
        broken_history(_log_history=np.zeros(2)),
        broken_history(max_length=None),
        broken_history(max_length='x'),
    ],
    ids=['no history', 'lengths', 'no length', 'text'],
)
def test_a_broken_history_is_an_error(value, path):
    torch.save(dict(state_dict=WEIGHTS, hub=value), path)

    with pytest.raises(UsageError, match=rf'{path} is damaged'):
        load_safely(str(path))


def test_a_state_dict_alone_is_accepted(path):
    torch.save(WEIGHTS, path)

    assert load_safely(str(path)).keys() == WEIGHTS.keys()


def test_a_list_is_no_checkpoint(path):
    torch.save([torch.ones(1)], path)

    with pytest.raises(UsageError, match=rf'{path} must hold a dict; got list'):
        load_safely(str(path))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r'no such file: .*gone\.pth'):
        load_safely(str(tmp_path / 'gone.pth'))
