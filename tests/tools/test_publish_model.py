"""The command on a checkpoint as mmengine writes it."""

import hashlib
import re
import sys
from pathlib import Path

import _cli

import publish_model
import pytest
import torch
import yaml
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint

from mmsparse.apis import build_model, read_config
from mmsparse.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
NAME = 'shunted-nano_1xb32-14e_digits'
CONFIG = ROOT / 'configs' / 'shunted_transformer' / f'{NAME}.py'


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return build_model(read_config(str(CONFIG)))


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / 'epoch_14.pth'
    meta = dict(epoch=14, cfg="work_dir = '/home/me'\nx = 1\n")
    content = dict(
        meta=meta,
        state_dict=model.state_dict(),
        optimizer=dict(state={0: torch.ones(1000)}),
        message_hub=dict(log_scalars={'loss': HistoryBuffer([1.0], [1])}),
    )
    torch.save(content, path)
    return path


@pytest.fixture
def publish(checkpoint, tmp_path, monkeypatch, capsys):
    """Run the command; return the file it wrote and the entry it printed."""

    def publish(*arguments):
        command = [
            'publish_model.py',
            checkpoint,
            '--out',
            tmp_path / 'out',
            *arguments,
        ]
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        with pytest.raises(SystemExit) as end:
            _cli.run(publish_model.main, OSError, ValueError)
        if end.value.code:
            raise end.value
        first, *rest = capsys.readouterr().out.splitlines()
        assert rest.pop(0) == 'Entry for a metafile:'
        (entry,) = yaml.safe_load('\n'.join(rest))
        return Path(first.split(': ')[1]), entry

    return publish


def test_the_file_has_its_hash_in_its_name_and_loads_into_the_model(publish, model):
    path, _ = publish('--config', CONFIG)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'{NAME}-{digest[:8]}.pth'
    content = torch.load(path, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta']['cfg'] == 'x = 1\n'
    fresh = build_model(read_config(str(CONFIG)))
    load_checkpoint(fresh, str(path), map_location='cpu', strict=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], tensor), key


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_equal_weights_have_one_name_and_nothing_is_overwritten(
    publish, tmp_path, suffix
):
    options = ('--config', CONFIG, '--name', 'mine', '--format', suffix)
    path, _ = publish(*options)

    with pytest.raises(SystemExit, match=rf'error: {path} exists'):
        publish(*options)

    assert [x.name for x in (tmp_path / 'out').iterdir()] == [path.name]


def test_a_backbone_starts_from_safetensors_in_half_precision(publish, model):
    path, _ = publish('--config', CONFIG, '--format', 'safetensors', '--half')
    cfg = read_config(str(CONFIG))
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(path), prefix='backbone.'
    )

    fresh = build_model(cfg)
    fresh.init_weights()

    assert path.stat().st_size < 2.1 * sum(x.numel() for x in model.parameters())
    assert path.stat().st_mode & 0o044 == 0o044
    assert len(read_checkpoint(path)) == len(model.state_dict())
    for key, tensor in model.backbone.state_dict().items():
        assert torch.allclose(fresh.backbone.state_dict()[key], tensor, atol=1e-3), key


def test_the_entry_is_one_of_our_metafiles(publish, model, monkeypatch):
    monkeypatch.chdir(ROOT)

    path, entry = publish('--config', CONFIG, '--url', 'https://example.org/digits/')

    assert entry == dict(
        Name=NAME,
        Config=f'configs/shunted_transformer/{NAME}.py',
        Metadata=dict(Parameters=sum(x.numel() for x in model.parameters())),
        Weights=f'https://example.org/digits/{path.name}',
    )


def test_the_entry_without_a_config_has_the_name_of_the_file(publish):
    path, entry = publish('--name', 'ä')

    assert entry == dict(Name='ä', Weights=path.name)


def test_mistakes_are_one_line_and_nothing_is_written(publish, checkpoint, tmp_path):
    other = CONFIG.with_name('fpn_shunted-nano_1xb8-1600i_digits.py')
    for options, message in (
        (
            ['--config', other],
            r'does not fit --config; missing keys: .*unexpected keys',
        ),
        (['--ema'], 'has no averages'),
        (['--name', '../b'], "--name must be a name without a folder; got '../b'"),
        (['--name', 'a/b'], "--name must be a name without a folder; got 'a/b'"),
        (['--config', 'none.py'], 'config: no such file: none.py'),
    ):
        with pytest.raises(SystemExit, match=f'error: .*{message}'):
            publish(*options)
    checkpoint.write_text('no checkpoint')
    with pytest.raises(SystemExit, match=f'error: {re.escape(str(checkpoint))} is dam'):
        publish()

    assert not list((tmp_path / 'out').glob('*'))
