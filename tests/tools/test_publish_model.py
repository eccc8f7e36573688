"""The command on a checkpoint as mmengine writes it."""

import hashlib
import re
import sys
from pathlib import Path

import publish_model
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint

from mmsparse.apis import build_model, read_config
from mmsparse.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
NAME = 'shunted-nano_1xb32-14e_digits'
CONFIG = ROOT / 'configs' / 'shunted_transformer' / f'{NAME}.py'
METAFILE = """\
Collections:
  - Name: {name}

# A remark.
Models:
  - Name: other
    Weights: https://example.org/other.pth
  - Name: {name}
    Metadata:
      Epochs: 14

  # The last one.
  - Name: another
"""


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
    """Run the command; return the file that it says it wrote."""

    def publish(*arguments):
        command = [
            'publish_model.py',
            checkpoint,
            '--out',
            tmp_path / 'out',
            *arguments,
        ]
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        publish_model.main()
        return Path(capsys.readouterr().out.splitlines()[0].split(': ')[1])

    return publish


def test_the_file_has_its_hash_in_its_name_and_loads_into_the_model(publish, model):
    path = publish('--config', CONFIG)

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
    path = publish(*options)

    with pytest.raises(SystemExit, match=rf'error: {path} exists'):
        publish(*options)

    assert [x.name for x in (tmp_path / 'out').iterdir()] == [path.name]


def test_a_backbone_starts_from_safetensors_in_half_precision(publish, model):
    path = publish('--config', CONFIG, '--format', 'safetensors', '--half')
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


def test_the_metafile_gets_a_line_and_keeps_all_others(publish, tmp_path):
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text(METAFILE.format(name=NAME))
    options = ('--config', CONFIG, '--metafile', metafile, '--url')

    path = publish(*options, 'https://example.org/digits/')

    line = f'    Weights: https://example.org/digits/{path.name}\n'
    before = METAFILE.format(name=NAME)
    text = metafile.read_text()
    assert text == before.replace('Epochs: 14\n', f'Epochs: 14\n{line}')
    with pytest.raises(SystemExit, match='has Weights already, .*; remove the line'):
        publish(*options, 'https://example.org')
    assert metafile.read_text() == text


@pytest.mark.parametrize(
    ('collections', 'after'),
    [
        (1, ''),
        (2, ''),
        (0, ''),
        (1, '\n# The end.\nImport:\n  - other.yml\n'),
    ],
    ids=['one collection', 'two collections', 'none', 'more below'],
)
def test_a_new_model_gets_an_entry(
    publish, model, tmp_path, monkeypatch, collections, after
):
    monkeypatch.chdir(ROOT)
    head = 'Collections:\n' * bool(collections) + '  - Name: ä\n' * collections
    before = f'{head}\nModels:\n  - Name: other  # a remark\n\n  - Name: "b"\r\n'
    metafile = tmp_path / 'metafile.yml'
    metafile.write_bytes(f'{before}{after}'.encode())

    path = publish('--config', CONFIG, '--metafile', metafile, '--url', 'https://x.org')

    parameters = sum(x.numel() for x in model.parameters())
    entry = (
        f'  - Name: {NAME}\n'
        + '    In Collection: ä\n' * (collections == 1)
        + f'    Config: configs/shunted_transformer/{NAME}.py\n'
        f'    Metadata:\n      Parameters: {parameters}\n'
        f'    Weights: https://x.org/{path.name}\n'
    )
    assert metafile.read_bytes().decode() == f'{before}{entry}{after}'


def test_a_metafile_may_be_empty_but_for_its_title(publish, tmp_path):
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text('Models:')

    path = publish('--config', CONFIG, '--metafile', metafile, '--url', 'https://x.org')

    assert metafile.read_text().startswith(f'Models:\n  - Name: {NAME}\n    Config: ')
    assert metafile.read_text().endswith(f'\n    Weights: https://x.org/{path.name}\n')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('Models:\n- Name: other\n', 'is not indented as ours are; add by hand: .*Nam'),
        ('Models: [{Name: other}]\n', 'is not indented as ours are'),
        (f'Models:\n- Name: {NAME}\n', 'is not indented as ours are'),
        ('Import:\n  - other.yml\n', "has no Models with Names: KeyError: 'Models'"),
        ('Models: {', r'has no Models with Names: yaml\.'),
        ('', 'has no Models with Names'),
    ],
)
def test_a_metafile_of_another_kind_is_told_and_stays(publish, tmp_path, text, message):
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text(text)

    with pytest.raises(SystemExit, match=f'error: --metafile: {metafile} {message}'):
        publish('--config', CONFIG, '--metafile', metafile, '--url', 'https://x.org')

    assert metafile.read_text() == text
    assert not (tmp_path / 'out').exists()


def test_mistakes_are_told_and_nothing_is_written(publish, checkpoint, tmp_path):
    metafile = tmp_path / 'metafile.yml'
    metafile.write_text(METAFILE.format(name='x'))
    other = CONFIG.with_name('fpn_shunted-nano_1xb8-1600i_digits.py')
    for options, message in (
        (['--metafile', metafile], '--metafile needs --url'),
        (
            ['--config', other],
            r'does not fit --config; missing keys: .*unexpected keys',
        ),
        (['--ema'], 'has no averages'),
        (['--metafile', metafile, '--url', 'u'], 'no model of the name epoch_14'),
        (['--metafile', tmp_path / 'no.yml', '--url', 'u'], 'no such file: .*no.yml'),
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
