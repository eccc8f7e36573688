"""Every fault of a checkpoint file, through every function that reads one."""

import argparse
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import convert_checkpoint
import publish_model
import pytest
import torch
from safetensors.torch import save_file

from mmsparse.apis import build_model, load_weights, read_config
from mmsparse.checkpoint.mmengine import load_safely
from mmsparse.errors import UsageError
from mmsparse.factory import create_backbone

CONFIG = (
    Path(__file__).parents[2]
    / 'configs/shunted_transformer/shunted-nano_1xb32-14e_digits.py'
)


@pytest.fixture(scope='module')
def model():
    return build_model(read_config(str(CONFIG)))


def convert(path, model):
    target = path.with_name('out.pth')
    options = dict.fromkeys(('family', 'arch', 'class_ids'))
    options.update(backbone_only=False, force=False)
    files = dict(source=path, target=target)
    convert_checkpoint.convert_file(argparse.Namespace(**files, **options))


def publish(path, model):
    options = dict.fromkeys(('config', 'name', 'ema', 'half', 'url'))
    where = dict(checkpoint=str(path), out=path.parent / 'out', format='pth')
    publish_model.publish(argparse.Namespace(**options, **where))


READERS = {
    'converter': convert,
    'publisher': publish,
    'infer, test, visualize, analyze, export': lambda path, model: load_weights(
        model, str(path)
    ),
    'create_backbone': lambda path, model: create_backbone('shunted-nano', path),
    'load_from, init_cfg, resume': lambda path, model: load_safely(str(path)),
}


def weights(**changes):
    return {'fc.weight': torch.ones(2, 3), 'fc.bias': torch.ones(2)} | changes


def with_weights(**changes):
    """A complete file with these entries."""
    return lambda path: torch.save(dict(state_dict=weights(**changes)), path)


def text(content):
    return lambda path: path.write_bytes(content)


def cut(count, new=True):
    """A truncated file."""

    def make(path):
        content = dict(state_dict=weights(w=torch.rand(1000)))
        torch.save(content, path, _use_new_zipfile_serialization=new)
        path.write_bytes(path.read_bytes()[:count])

    return make


class Call:
    def __reduce__(self):
        return os.mkdir, ('ran',)


def replace_pickle(path, content):
    """Put another pickle into a file whose storage ``0`` has four elements."""
    torch.save({'w': torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith('data.pkl') else data)


class Claim:
    """A tensor as a file may describe it; the file has four elements."""

    def __init__(self, size, stride, offset=0, count=4):
        self.layout, self.count = (offset, size, stride), count

    def __reduce__(self):
        storage = Storage(self.count)
        rebuild = torch._utils._rebuild_tensor_v2
        return rebuild, (storage, *self.layout, False, OrderedDict())


class Storage:
    def __init__(self, count):
        self.count = count


class ClaimPickler(pickle.Pickler):
    def persistent_id(self, thing):
        if isinstance(thing, Storage):
            return 'storage', torch.FloatStorage, '0', 'cpu', thing.count
        return None


def claim(*args, **kwargs):
    def make(path):
        content = io.BytesIO()
        ClaimPickler(content, protocol=2).dump({'w': Claim(*args, **kwargs)})
        replace_pickle(path, content.getvalue())

    return make


def bomb(path):
    torch.save(dict(state_dict=weights(w=torch.zeros(1_000_000))), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def safetensors(**changes):
    """A file of one tensor with a false header."""

    def make(path):
        entry = dict(dtype='F32', shape=[2], data_offsets=[0, 8]) | changes
        header = json.dumps({'fc.weight': entry}).encode()
        path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(8))

    return make


def long_header(path):
    path.write_bytes(struct.pack('<Q', 10**15) + b'{}' + bytes(8))


def short_header(path):
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:20])


UNREADABLE = {
    'missing': (lambda path: None, 'no such file'),
    'folder': (Path.mkdir, 'no such file|is a folder; give the file'),
    'empty': (text(b''), 'is empty'),
    'text': (text(b'no checkpoint\n'), 'is damaged, or no checkpoint'),
    'image': (text(b'\x89PNG\r\n\x1a\n' + bytes(99)), 'is damaged, or no checkpoint'),
    'bytes': (text(os.urandom(500)), 'is damaged, or no checkpoint'),
    'truncated zip': (cut(2500), 'is damaged, or no checkpoint'),
    'zip without its end': (cut(-10), 'is damaged, or no checkpoint'),
    'old format cut': (cut(-100, new=False), 'is damaged, or no checkpoint'),
    'compressed': (bomb, 'its members are compressed or overlap'),
    'imports os': (with_weights(other=Call()), r'is refused: .*mkdir'),
    'huge': (claim((10**12,), (1,)), 'has more elements than the 4 in the file'),
    'huge with stride 0': (claim((10**12,), (0,)), 'more elements than the 4'),
    'huge in product': (claim((2**40, 2**40), (1, 1)), 'more elements than the 4'),
    'beyond 64 bits': (claim((2**70,), (1,)), 'more elements than the 4'),
    'negative size': (claim((-4,), (1,)), r'size \(-4,\).* at least 0'),
    'negative stride': (claim((4,), (-1,)), r'strides \(-1,\).* at least 0'),
    'negative offset': (claim((4,), (1,), offset=-1), 'offset -1; .* at least 0'),
    'offset': (claim((4,), (1,), offset=2), 'offset 2 has more elements than the 4'),
    'stride': (claim((2, 2), (3, 1)), 'more elements than the 4'),
    'fewer strides': (claim((2, 2), (1,)), 'one stride per size'),
    'size of text': (claim(('4',), (1,)), 'must be integers'),
    'fractional size': (claim((4.0,), (1,)), 'must be integers'),
    'longer storage': (claim((8,), (1,), count=8), "8 elements .* '0', .* 16 bytes"),
    'huge storage': (claim((4,), (1,), count=10**12), '0 elements .* holds 16 bytes'),
    'negative storage': (claim((4,), (1,), count=-4), '-4 elements are to be read'),
}
SAFETENSORS = {
    'empty': (text(b''), 'is empty'),
    'text': (text(b'no checkpoint\n'), 'is damaged, or no checkpoint'),
    'cut': (short_header, 'is damaged, or no checkpoint'),
    'long header': (long_header, 'is damaged, or no checkpoint'),
    'huge': (safetensors(shape=[10**12]), 'is damaged, or no checkpoint'),
    'negative': (safetensors(shape=[-2]), 'is damaged, or no checkpoint'),
    'beyond the file': (safetensors(data_offsets=[0, 10**12]), 'is damaged, or no'),
    'backwards': (safetensors(data_offsets=[8, 0]), 'is damaged, or no checkpoint'),
    'unknown dtype': (safetensors(dtype='F31'), 'is damaged, or no checkpoint'),
    'integers': (safetensors(dtype='I32'), r'fc\.weight has dtype torch\.int32'),
    'complex': (
        safetensors(dtype='C64', shape=[1]),
        r'fc\.weight has dtype torch\.complex64|is damaged',  # by the version
    ),
}
NAN, INFINITE = torch.tensor([1.0, float('nan')]), torch.tensor([float('-inf')])
UNFIT = {
    'NaN': (with_weights(x=NAN), 'x: 1 of 2 elements are infinite or NaN'),
    'infinite': (with_weights(x=INFINITE), 'x: 1 of 1 elements are infinite'),
    'integers': (
        with_weights(**{'a.weight': torch.ones(2, dtype=torch.int64)}),
        r'a\.weight has dtype torch\.int64; it must be one of float16',
    ),
    'complex': (
        with_weights(x=torch.ones(1) * 1j),
        r'x has dtype torch\.complex64',
    ),
    'text for a tensor': (
        with_weights(**{'a.bias': 'ones'}),
        "a.bias must be a tensor; got 'on",
    ),
    'object for a tensor': (
        with_weights(**{'a.bias': argparse.Namespace()}),
        r'a\.bias must be a tensor; got <argparse\.Namespace>',
    ),
    'no string': (
        lambda path: torch.save({'state_dict': {0: torch.ones(1)}}, path),
        'key of a tensor must be a string; got 0',
    ),
    'list': (
        lambda path: torch.save([torch.ones(1)], path),
        'must .*dict.*; got (list|.tensor)',
    ),
}
if hasattr(torch, 'float8_e4m3fn'):
    eight = torch.ones(2).to(torch.float8_e4m3fn)
    UNFIT['float8'] = with_weights(x=eight), r'x has dtype torch\.float8_e4m3fn'
NOT_MMENGINE = ('text for a tensor', 'object for a tensor')  # reads such files


@contextmanager
def little_memory():
    """Limit the process to four more GiB than it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def check(reader, path, make, message, model, monkeypatch):
    monkeypatch.chdir(path.parent)
    make(path)
    before = sorted(path.parent.iterdir())

    with little_memory(), pytest.raises(UsageError) as info:
        READERS[reader](path, model)

    reported = str(info.value)
    assert str(path) in reported
    assert len(reported.splitlines()) == 1
    assert len(reported) < 500
    assert not [x for x in sorted(path.parent.iterdir()) if x not in before]
    info.match(message)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('fault', UNREADABLE)
def test_an_unreadable_file_is_an_error(fault, reader, tmp_path, model, monkeypatch):
    check(reader, tmp_path / 'a.pth', *UNREADABLE[fault], model, monkeypatch)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('fault', SAFETENSORS)
def test_a_false_header_is_an_error(fault, reader, tmp_path, model, monkeypatch):
    path = tmp_path / 'a.safetensors'
    check(reader, path, *SAFETENSORS[fault], model, monkeypatch)


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('fault', UNFIT)
def test_impossible_weights_are_an_error_with_their_key(
    fault, reader, tmp_path, model, monkeypatch
):
    if fault in NOT_MMENGINE and reader.startswith('load_from'):
        pytest.skip('mmengine only reads the keys of its model')
    check(reader, tmp_path / 'a.pth', *UNFIT[fault], model, monkeypatch)


def test_the_weights_of_another_model_do_not_fit(tmp_path, model):
    torch.save(weights(), tmp_path / 'a.pth')

    with pytest.raises(UsageError, match=r'a\.pth does not fit .*missing keys: backb'):
        load_weights(model, str(tmp_path / 'a.pth'))


def test_unexpected_keys_can_be_allowed(tmp_path, model):
    state = model.state_dict()
    torch.save(state | weights(), tmp_path / 'a.pth')

    load_weights(model, str(tmp_path / 'a.pth'), allow_unexpected=True)

    with pytest.raises(UsageError, match=r'unexpected keys: fc\.weight, fc\.bias'):
        load_weights(model, str(tmp_path / 'a.pth'))
    with pytest.raises(UsageError, match='size mismatch: backbone'):
        one = {key: x[:1] if x.ndim else x for key, x in state.items()}
        torch.save(one, tmp_path / 'b.pth')
        load_weights(model, str(tmp_path / 'b.pth'), allow_unexpected=True)


@pytest.mark.parametrize('new', [True, False], ids=['zip', 'old format'])
def test_changed_bytes_are_read_or_an_error(new, tmp_path):
    """Not every change is found: the old format has no checksums."""
    path, generator = tmp_path / 'a.pth', torch.Generator().manual_seed(0)
    content = dict(state_dict=weights(w=torch.rand(50)), meta=dict(epoch=3))
    torch.save(content, path, _use_new_zipfile_serialization=new)
    whole, refused = path.read_bytes(), 0
    for _ in range(300):
        damaged = bytearray(whole)
        indices = torch.randint(len(whole), (3,), generator=generator)
        values = torch.randint(256, (3,), generator=generator)
        for index, value in zip(indices.tolist(), values.tolist(), strict=True):
            damaged[index] = value
        path.write_bytes(damaged)
        try:
            with little_memory():
                load_safely(str(path))
        except UsageError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20
