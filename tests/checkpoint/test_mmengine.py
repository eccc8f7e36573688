import functools
import pickle
import subprocess
import sys

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint

from mmsparse.checkpoint.mmengine import allow_mmengine_checkpoints

needs_weights_only = pytest.mark.skipif(
    not hasattr(torch.serialization, 'add_safe_globals'),
    reason='this torch unpickles everything by default; there is nothing to allow',
)


@pytest.fixture(autouse=True)
def allowed():
    allow_mmengine_checkpoints()


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@needs_weights_only
def test_a_history_buffer_survives_weights_only_loading(tmp_path):
    buffer = HistoryBuffer()
    for value in (1.5, 2.5, 5.0):
        buffer.update(value)
    torch.save({'loss': buffer}, tmp_path / 'hub.pth')

    loaded = torch.load(tmp_path / 'hub.pth', weights_only=True)['loss']

    assert loaded.data[0].tolist() == [1.5, 2.5, 5.0]
    assert loaded.mean() == 3.0
    assert loaded.statistics('max') == 5.0


@needs_weights_only
@pytest.mark.parametrize(
    'call',
    [
        Call(print, 'this must not be seen'),
        Call(getattr, torch.nn.Parameter, 'numpy'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(functools.partial, print),
    ],
    ids=['print', 'getattr', 'getattr of a history buffer', 'partial'],
)
def test_a_file_with_other_code_is_refused(tmp_path, call, capsys):
    torch.save({'loss': call}, tmp_path / 'evil.pth')

    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'evil.pth')
    assert 'seen' not in capsys.readouterr().out


@needs_weights_only
def test_the_registry_alone_is_enough_to_load(tmp_path):
    torch.save({'state_dict': {}, 'hub': HistoryBuffer([1.0], [1])}, tmp_path / 'a.pth')
    program = (
        'import torch, mmsparse.registry\n'
        f'print(torch.load({str(tmp_path / "a.pth")!r})["hub"].current())'
    )

    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True
    )

    assert done.stdout == '1.0\n', done.stderr


def test_mmengine_loads_the_weights_of_its_own_checkpoint(tmp_path):
    one, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save(
        {
            'state_dict': one.state_dict(),
            'message_hub': {'log_scalars': {'loss': HistoryBuffer([1.0], [1])}},
        },
        tmp_path / 'a.pth',
    )

    load_checkpoint(other, str(tmp_path / 'a.pth'))

    assert torch.equal(one.weight, other.weight)
