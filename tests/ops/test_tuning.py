import json
import sys

import pytest
import torch
from torch.fx.experimental import symbolic_shapes

from mmsparse.ops import _tuning
from mmsparse.ops._tuning import (
    device_name,
    fastest_backend,
    measurements,
    tuning_file,
    user_folder,
)

CPU = torch.device('cpu')
OP = 'some_attention'
KNOWN = ('slow', 'fast')


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Empty folders of the user's and of the shipped files, which are read again."""
    monkeypatch.setenv(_tuning.FOLDER_VARIABLE, str(tmp_path / 'user'))
    monkeypatch.setattr(_tuning, 'FOLDER', tmp_path / 'shipped')
    measurements.cache_clear()
    yield tmp_path
    measurements.cache_clear()


def write(folder, *rows):
    folder.mkdir(exist_ok=True)
    path = folder / tuning_file(device_name(CPU))
    path.write_text(json.dumps({'ops': {OP: rows}}))
    return path


def row(fastest, dtype='float32', training=False, **sizes):
    times = {name: 1.0 if name == fastest else 2.0 for name in ('slow', 'fast')}
    return dict(sizes=sizes, dtype=dtype, training=training, milliseconds=times)


def fastest(known=KNOWN, dtype=torch.float32, training=False, **sizes):
    x = torch.zeros(1, dtype=dtype, requires_grad=training)
    return fastest_backend(OP, x, known, **(sizes or dict(tokens=64)))


def test_without_a_file_nothing_is_known():
    assert fastest() is None


@pytest.mark.parametrize(
    ('sizes', 'expected'),
    [
        (dict(tokens=10, keys=100), 'slow'),
        (dict(tokens=1000, keys=100), 'fast'),
        # Ratios count: 2 is nearer to 1 than to 1000, and 60 to 1000.
        (dict(tokens=2, keys=100), 'slow'),
        (dict(tokens=60, keys=100), 'fast'),
        (dict(keys=100, tokens=60), 'fast'),
        (dict(tokens=20, keys=10_000), 'fast'),
    ],
    ids=str,
)
def test_the_measurement_of_the_nearest_sizes_decides(folders, sizes, expected):
    write(
        folders / 'user',
        row('slow', tokens=1, keys=100),
        row('fast', tokens=1000, keys=100),
        row('fast', tokens=10, keys=20_000),
    )

    assert fastest(**sizes) == expected


def test_a_file_may_have_more_sizes_than_the_op_asks_by(folders):
    write(folders / 'user', row('fast', tokens=64, batch=1))

    assert fastest(tokens=4) == 'fast'


def test_dtype_and_pass_are_those_of_the_tensor(folders):
    write(
        folders / 'user',
        row('slow', tokens=64),
        row('fast', training=True, tokens=64),
        row('fast', dtype='bfloat16', tokens=64),
    )

    assert fastest() == 'slow'
    assert fastest(training=True) == 'fast'
    with torch.no_grad():
        assert fastest(training=True) == 'slow'
    assert fastest(dtype=torch.bfloat16) == 'fast'
    assert fastest(dtype=torch.bfloat16, training=True) is None
    assert fastest(dtype=torch.float64) is None


def test_only_backends_that_can_compute_the_call_are_chosen(folders):
    write(folders / 'user', row('fast', tokens=64))

    assert fastest(known=('slow', 'other')) == 'slow'
    assert fastest(known=('other',)) is None


def test_the_file_of_the_user_comes_before_the_shipped_one(folders):
    write(folders / 'shipped', row('slow', tokens=64))
    assert fastest() == 'slow'

    measurements.cache_clear()
    path = write(folders / 'user', row('fast', tokens=64))
    assert fastest() == 'fast'

    measurements.cache_clear()
    path.unlink()
    assert fastest() == 'slow'


@pytest.mark.parametrize('text', ['{', '{}', '[]'])
def test_an_unreadable_file_is_named(folders, text):
    path = write(folders / 'user')
    path.write_text(text)

    with pytest.raises(ValueError, match=r'must be a file of `tools/benchmark') as info:
        fastest()
    assert str(info.value).startswith(str(path))
    assert info.value.args[0].endswith('Remove it or write it again.')


@pytest.mark.skipif(
    not hasattr(symbolic_shapes, 'has_static_value'),
    reason='older versions of torch cannot say what is symbolic',
)
def test_nothing_is_known_of_a_symbolic_size(folders):
    write(folders / 'user', row('fast', tokens=64))
    found = []

    def choose(x):
        found.append(fastest_backend(OP, x, KNOWN, tokens=x.shape[0]))
        return x + 1

    x = torch.zeros(64)
    for dynamic in (True, False):
        torch.compile(choose, backend='eager', fullgraph=True, dynamic=dynamic)(x)
        torch._dynamo.reset()

    assert found == [None, 'fast']


def test_files_are_named_after_the_device(monkeypatch):
    assert tuning_file('NVIDIA H100 80GB (HBM3)') == 'nvidia-h100-80gb-hbm3.json'
    monkeypatch.delenv(_tuning.FOLDER_VARIABLE)
    monkeypatch.setenv('XDG_CACHE_HOME', '/elsewhere')
    assert str(user_folder()) == '/elsewhere/mmsparse/tuning'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', '/home/someone')
    assert str(user_folder()) == '/home/someone/.cache/mmsparse/tuning'


@pytest.mark.skipif(sys.platform != 'linux', reason='where Linux has the name')
def test_a_processor_has_the_name_that_its_maker_gives_it():
    assert len(device_name(CPU)) > 3
    assert device_name(torch.device('meta')) == 'meta'
