import argparse
import hashlib
import os

import pytest
import torch
from mmengine.runner import load_checkpoint
from safetensors.torch import load_file

from mmsparse.conversion.families import FAMILIES
from mmsparse.models import ShuntedTransformer


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.fixture(scope='module')
def backbone():
    torch.manual_seed(0)
    return ShuntedTransformer('nano')


@pytest.fixture
def official(backbone, tmp_path):
    """A file as the official code saves it."""
    family = FAMILIES['shunted']
    weights = {
        family.official_key(key, 'nano'): tensor
        for key, tensor in backbone.state_dict().items()
    }
    path = tmp_path / 'ckpt_nano.pth'
    args = argparse.Namespace(model='shunted_nano')
    torch.save({'model': weights, 'epoch': 299, 'args': args}, path)
    return path


def test_the_written_file_loads_into_the_model(official, backbone, tmp_path, run_tool):
    out = tmp_path / 'sub' / 'out.pth'

    done = run_tool('convert_checkpoint.py', official, out, cwd=tmp_path)

    model = torch.nn.Module()
    model.backbone = ShuntedTransformer('nano')
    checkpoint = load_checkpoint(model, str(out), strict=True)
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], tensor), key
    digest = hashlib.sha256(official.read_bytes()).hexdigest()
    assert checkpoint['meta'] == dict(
        family='shunted',
        arch='nano',
        source='ckpt_nano.pth',
        source_sha256=digest,
        mmsparse_version=checkpoint['meta']['mmsparse_version'],
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f'{official}: holds model, epoch, args; SHA-256 {digest}'
    assert lines[1] == f'shunted nano: {len(backbone.state_dict())} entries of backbone'
    assert lines[2] == f'written: {out}'


def test_the_suffix_safetensors_writes_such_a_file(
    official, backbone, tmp_path, run_tool
):
    out = tmp_path / 'out.safetensors'

    run_tool('convert_checkpoint.py', official, out, '--arch', 'nano', cwd=tmp_path)

    assert set(load_file(out)) == {f'backbone.{key}' for key in backbone.state_dict()}


def test_an_existing_file_is_overwritten_only_with_force(official, tmp_path, run_tool):
    out = tmp_path / 'out.pth'
    out.write_text('mine')

    done = run_tool('convert_checkpoint.py', official, out, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr == f'error: {out} exists; --force overwrites it.\n'
    assert out.read_text() == 'mine'
    run_tool('convert_checkpoint.py', official, out, '--force', cwd=tmp_path)
    assert 'state_dict' in torch.load(out, weights_only=True)


def missing(path):
    path.unlink()


def malicious(path):
    torch.save({'model': Call(os.system, 'touch seen')}, path)


def truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


def another_model(path):
    torch.save({'conv1.weight': torch.ones(1)}, path)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (missing, 'no such file: {}'),
        (malicious, '{} is refused: reading it would call'),
        (truncated, '{} is damaged'),
        (
            another_model,
            '{}: The keys are not those of detr_panoptic or detr or sparse_detr or',
        ),
    ],
)
def test_an_error_is_one_line_and_nothing_is_written(
    official, spoil, message, tmp_path, run_tool
):
    spoil(official)
    before = sorted(tmp_path.iterdir())

    done = run_tool(
        'convert_checkpoint.py', official, 'out.pth', cwd=tmp_path, check=False
    )

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f'error: {message.format(official)}')
    assert sorted(tmp_path.iterdir()) == before


def test_options_replace_recognition(official, tmp_path, run_tool):
    done = run_tool(
        'convert_checkpoint.py',
        official,
        'out.pth',
        *('--family', 'dat', '--backbone-only'),
        cwd=tmp_path,
        check=False,
    )

    assert done.stderr.startswith(f'error: {official}: The keys are not those of dat')


def test_help_mentions_safety(tmp_path, run_tool):
    done = run_tool('convert_checkpoint.py', '--help', cwd=tmp_path)

    assert 'none of its code is run' in ' '.join(done.stdout.split())
