import argparse
import collections
import datetime
import enum
import functools
import os
import pathlib
import pickle
import random
import subprocess
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmsparse.checkpoint import read_checkpoint, write_checkpoint
from mmsparse.checkpoint.files import read_metadata, sha256
from mmsparse.checkpoint.safe_pickle import Placeholder, walk

WEIGHTS = {'fc.weight': torch.arange(6.0).reshape(2, 3), 'fc.bias': torch.ones(2)}
FORMATS = {'zip': True, 'legacy': False}


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    """Save with torch in one of its formats; return the path."""

    def save_as(content, **options):
        path = tmp_path / f'{request.param}.pth'
        new = FORMATS[request.param]
        torch.save(content, path, _use_new_zipfile_serialization=new, **options)
        return path

    return save_as


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Loud(dict):
    """Records when it is created, filled or restored."""

    calls = []  # noqa: RUF012

    def __new__(cls, *args, **kwargs):
        cls.calls.append('new')
        return super().__new__(cls)

    def __setitem__(self, key, value):
        self.calls.append('set')
        super().__setitem__(key, value)

    def __setstate__(self, state):
        self.calls.append('restore')

    def __getstate__(self):
        return {'frozen': True}


class Color(enum.Enum):
    RED = 1


class Tagged(torch.Tensor):
    pass


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


def test_weights_are_read_in_all_formats(save, tmp_path):
    save_file(WEIGHTS, tmp_path / 'weights.safetensors')

    assert same(read_checkpoint(save(WEIGHTS)), WEIGHTS)
    assert same(read_checkpoint(tmp_path / 'weights.safetensors'), WEIGHTS)


@pytest.mark.parametrize('protocol', [1, 2, 4])  # those that torch reads
def test_all_pickle_protocols_are_read(save, protocol):
    args = argparse.Namespace(arch='tiny')

    read = read_checkpoint(
        save({'model': WEIGHTS, 'args': args}, pickle_protocol=protocol)
    )

    assert same(read['model'], WEIGHTS)
    assert ('arch', 'tiny') in list(walk(read['args']))


@pytest.mark.parametrize(
    'tensor',
    [
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, dtype=torch.float16),
        torch.ones(2, dtype=torch.bfloat16),
        torch.arange(3),
        torch.tensor(3),
        torch.ones(4, 6)[1:, ::2],
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ],
    ids=lambda tensor: f'{type(tensor).__name__}-{tensor.dtype}-{tuple(tensor.shape)}',
)
def test_tensors_of_any_dtype_and_layout_are_read(save, tensor):
    read = read_checkpoint(save({'x': tensor}))['x']

    assert read.dtype == tensor.dtype
    assert read.stride() == tensor.stride()
    assert torch.equal(read, tensor)


def test_a_tensor_with_attributes_or_of_a_subclass_becomes_a_plain_one(save):
    tagged = torch.ones(2).as_subclass(Tagged)
    tagged.tag = 'decay'
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.tag = 'decay'

    read = read_checkpoint(save({'x': tagged, 'y': parameter}))

    assert {type(value) for value in read.values()} == {torch.Tensor}
    assert read['x'].tolist() == [1.0, 1.0]
    assert read['y'].tolist() == [0.0, 0.0]


def test_shared_tensors_stay_shared(save):
    read = read_checkpoint(save({'a': WEIGHTS['fc.bias'], 'b': WEIGHTS['fc.bias']}))

    assert read['a'].data_ptr() == read['b'].data_ptr()


def test_an_object_becomes_a_placeholder_with_its_content(save):
    path = save({'model': WEIGHTS, 'config': Loud(arch='tiny')})
    Loud.calls.clear()

    config = read_checkpoint(path)['config']

    assert isinstance(config, Placeholder)
    assert config.source == f'{__name__}.Loud'
    assert config.items == {'arch': 'tiny'}
    assert config.state == {'frozen': True}
    assert repr(config) == f'<{__name__}.Loud>'
    assert Loud.calls == []


def test_objects_of_classes_that_are_not_installed_are_read(tmp_path):
    """The bytes of a yacs config in a checkpoint."""
    node = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    module = types.ModuleType('yacs.config')
    module.CfgNode = node
    config = node(MODEL=node(NAME='dat_tiny', DAT=node(dims=[96, 192])))
    config.__dict__['__immutable__'] = True
    modules = {'yacs': types.ModuleType('yacs'), 'yacs.config': module}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in modules.items():
            patch.setitem(sys.modules, name, value)
        torch.save({'model': WEIGHTS, 'config': config}, tmp_path / 'a.pth')

    read = read_checkpoint(tmp_path / 'a.pth')['config']

    assert read.source == 'yacs.config.CfgNode'
    assert read.state == {'__immutable__': True}
    assert read.items['MODEL'].items['DAT'].items == {'dims': [96, 192]}
    assert dict(pair for pair in walk(read) if pair[0] == 'NAME') == {
        'NAME': 'dat_tiny'
    }


@pytest.mark.parametrize(
    'value',
    [
        np.float64(81.4),
        np.arange(3),
        np.array(['a', 'b']),
        np.random.get_state(),
        random.getstate(),
        pathlib.PurePosixPath('a/b'),
        pathlib.Path('a'),
        datetime.datetime(2022, 6, 1, tzinfo=datetime.timezone.utc),
        datetime.timedelta(hours=3),
        torch.device('cpu'),
        torch.Size((1, 2)),
        torch.float16,
        collections.defaultdict(list, {'a': [1]}),
        collections.Counter('aab'),
        collections.deque([1, 2]),
        collections.OrderedDict(a=1),
        {1, 2},
        frozenset({1}),
        b'bytes \x00\xff',
        bytearray(b'abc'),
        1j,
        slice(1, 2),
        range(3),
        torch.nn.Linear,
        len,
    ],
    ids=lambda value: type(value).__name__,
)
def test_harmless_values_next_to_the_weights_are_accepted(save, value):
    read = read_checkpoint(save({'model': WEIGHTS, 'other': [value]}))

    assert same(read['model'], WEIGHTS)


def test_plain_values_are_kept(save):
    plain = {'epoch': 3, 'best': 81.4, 'log': [None, True, ('a', b'\xff')]}

    read = read_checkpoint(save({'model': WEIGHTS, **plain}))

    assert {name: read[name] for name in plain} == plain


def test_walking_ends_for_objects_that_refer_to_each_other(save):
    one, other = argparse.Namespace(name='one'), argparse.Namespace()
    one.other, other.other = other, one

    read = read_checkpoint(save({'model': WEIGHTS, 'args': one}))

    assert [value for key, value in walk(read['args']) if key == 'name'] == ['one']


@pytest.mark.parametrize(
    ('call', 'name'),
    [
        (Call(os.system, 'touch seen'), f'{os.system.__module__}.system'),
        (Call(subprocess.Popen, ['touch', 'seen']), 'subprocess.Popen'),
        (Call(eval, 'open("seen", "w")'), 'builtins.eval'),
        (Call(exec, 'open("seen", "w")'), 'builtins.exec'),
        (Call(getattr, torch.Tensor, 'numpy'), 'builtins.getattr'),
        (Call(__import__, 'os'), 'builtins.__import__'),
        (Call(open, 'seen', 'w'), '.open'),
        (Call(torch.hub.load, 'a/b', 'c'), 'torch.hub.load'),
        (Call(torch.load, 'seen'), 'torch.serialization.load'),
        (Call(torch.storage._load_from_bytes, b'a'), 'torch.storage._load_from_bytes'),
        (Call(functools.partial, print), 'functools.partial'),
        (Call(pickle.loads, b'a'), 'pickle.loads'),
        (Call(Loud), f'{__name__}.Loud'),
        (Color.RED, 'Color|getattr'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_file_that_calls_something_is_refused(
    save, call, name, tmp_path, monkeypatch
):
    path = save({'model': WEIGHTS, 'other': call})
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(ValueError, match=rf'{path} is refused: .*({name})') as info:
        read_checkpoint(path)

    assert 'save its state dict alone' in str(info.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ('program', 'name'),
    [
        (b"cos\nsystem\n(S'touch seen'\ntR.", 'os.system'),
        (b"(S'touch seen'\nios\nsystem\n.", 'os.system'),
        (b'(cos\nsystem\nS"touch seen"\no.', 'os.system'),
        (b'c__builtin__\neval\n(S"1"\ntR.', 'builtins.eval'),
        (b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R.', 'os.system'),
        # Through allowed functions: rebuilding a tensor, codecs.
        (
            b'ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN(S"a"\ntNtR.',
            'os.system',
        ),
        (b'c_codecs\nencode\n(S"a"\nS"rot13"\ntR.', '_codecs.encode'),
    ],
    ids=['reduce', 'inst', 'obj', 'python 2', 'stack global', 'rebuild', 'codec'],
)
def test_no_opcode_calls_a_function(tmp_path, monkeypatch, program, name):
    path = tmp_path / 'evil.pth'
    path.write_bytes(program)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=rf'is refused: .*{name}'):
        read_checkpoint(path)

    assert list(tmp_path.iterdir()) == [path]


def test_a_file_cannot_change_how_the_next_one_is_read(tmp_path):
    """``BUILD`` sets attributes of whatever a file names."""
    path = tmp_path / 'evil.pth'
    for target in (
        'torch._utils._rebuild_tensor_v2',
        'collections.OrderedDict',
        'any.Placeholder',
    ):
        module, name = target.rsplit('.', 1)
        path.write_bytes(
            f'c{module}\n{name}\n'.encode()
            + b"(N(S'__doc__'\nS'changed'\nS'func'\nNS'__call__'\nNdtb."
        )
        with pytest.raises(ValueError, match='damaged'):
            read_checkpoint(path)
    torch.save(WEIGHTS, tmp_path / 'good.pth')

    assert same(read_checkpoint(tmp_path / 'good.pth'), WEIGHTS)
    assert collections.OrderedDict.__doc__ != 'changed'
    assert torch._utils._rebuild_tensor_v2.__doc__ != 'changed'
    assert Placeholder.__doc__ != 'changed'


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / 'script.pth'
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)

    with pytest.raises(
        ValueError, match=rf'{path} is refused: it is a program of Torch'
    ):
        read_checkpoint(path)


def test_a_tar_archive_is_refused(tmp_path):
    path = tmp_path / 'old.pth'
    with tarfile.open(path, 'w') as archive:
        archive.add(__file__, arcname='storages')

    with pytest.raises(ValueError, match=rf'{path} is refused: it is a tar archive'):
        read_checkpoint(path)


def test_a_truncated_file_is_an_error(save):
    path = save({'model': torch.ones(10_000)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(ValueError, match=rf'{path} is damaged'):
        read_checkpoint(path)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'hello\n', 'is damaged, or no'),
        (b'config: 1\n', 'is damaged, or no'),
        (b'\n<!DOCTYPE html><html>Sign in</html>', 'is a web page instead of a check'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'is a pointer of .* git lfs'),
        (b'{"a": 1}' * 100, 'is damaged, or no'),
    ],
    ids=['empty', 'text', 'yaml', 'html', 'lfs', 'json'],
)
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path, suffix, content, message):
    path = tmp_path / f'file{suffix}'
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf'{path} {message}'):
        read_checkpoint(path)


def test_a_zip_archive_with_a_broken_directory_is_an_error(tmp_path):
    path = tmp_path / 'broken.pth'
    torch.save(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    start = content.index(b'PK\x01\x02')
    content[start : start + 100] = bytes(100)
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf'{path} is damaged, or no'):
        read_checkpoint(path)


def test_a_zip_archive_of_other_files_is_an_error(tmp_path):
    path = tmp_path / 'images.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.txt', 'a')

    with pytest.raises(ValueError, match=rf'{path} is damaged, or no'):
        read_checkpoint(path)


def test_a_file_without_tensors_is_an_error(save):
    path = save({'epoch': 3, 'args': argparse.Namespace(lr=0.1)})

    with pytest.raises(ValueError, match=rf'{path} holds no tensor'):
        read_checkpoint(path)


def test_missing_safetensors_are_an_error_with_the_command(tmp_path, monkeypatch):
    save_file(WEIGHTS, tmp_path / 'a.safetensors')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)

    with pytest.raises(ValueError, match=r'a\.safetensors needs .* pip install safet'):
        read_checkpoint(tmp_path / 'a.safetensors')


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r'no such file: .*nothing\.pth'):
        read_checkpoint(tmp_path / 'nothing.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_written_files_can_be_read(tmp_path, suffix):
    path = tmp_path / f'out{suffix}'
    weights = {**WEIGHTS, 'view': torch.ones(1000, 4)[0], 'turned': torch.ones(2, 3).T}

    write_checkpoint(path, weights, {'family': 'x'})

    read = load_file(path) if suffix != '.pth' else torch.load(path, weights_only=True)
    if suffix == '.pth':
        assert read['meta'] == {'family': 'x'}
        read = read['state_dict']
    assert same(read, weights)
    assert path.stat().st_size < 4000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_equal_contents_make_equal_files(tmp_path, suffix):
    path, meta = tmp_path / f'out{suffix}', {name: 'ä "x"' for name in 'abcdefghij'}
    hashes = set()
    for _ in range(3):
        write_checkpoint(path, WEIGHTS, meta)
        hashes.add(sha256(path))

    assert len(hashes) == 1
    if suffix == '.safetensors':
        with safe_open(path, framework='pt') as file:
            assert file.metadata() == meta


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f'out{suffix}'
    path.write_text('old')

    with pytest.raises(Exception, match='.'):
        write_checkpoint(path, WEIGHTS, {'family': lambda: None})

    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')

    assert sha256(tmp_path / 'a') == (
        'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
    )


def test_metadata_are_read_from_both_formats(tmp_path):
    meta = dict(family='dat', dataset_meta=dict(classes=['a', 'b']), epoch=3)
    strings = dict(family='dat', dataset_meta='{"classes": ["a", "b"]}', epoch='3')
    files = tmp_path / 'x.pth', tmp_path / 'x.safetensors', tmp_path / 'none.pth'
    write_checkpoint(files[0], WEIGHTS, meta)
    write_checkpoint(files[1], WEIGHTS, strings)
    torch.save(WEIGHTS, files[2])

    found = [read_metadata(path, read_checkpoint(path)) for path in files]

    assert found == [meta, {**meta, 'epoch': '3'}, {}]


def test_a_suffix_of_the_other_format_is_an_error(tmp_path):
    save_file(WEIGHTS, tmp_path / 'a.pth')
    torch.save(WEIGHTS, tmp_path / 'b.safetensors')

    with pytest.raises(ValueError, match='safetensors; rename it to .safetensors'):
        read_checkpoint(tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='zip archive, .* rename it to .pth'):
        read_checkpoint(tmp_path / 'b.safetensors')
