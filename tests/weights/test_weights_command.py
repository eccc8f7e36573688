"""The command tools/weights.py in this process."""

import hashlib
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mmsparse import create_backbone
from mmsparse.checkpoint import write_checkpoint
from mmsparse.checkpoint.files import sha256
from mmsparse.checkpoint.state_dict import read_weights, tensors_sha256
from mmsparse.conversion.families import FAMILIES

ROOT = Path(__file__).parents[2]
NAME = 'biformer-nano_1xb32-9e_digits'
(NANO,) = (ROOT / 'weights').glob(f'{NAME}-*.pth')
CONTENT = b'weights of a test'
KNOWN = dict(sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command; return its exit status or error, and the lines it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['weights.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / 'tools' / 'weights.py'), run_name='__main__')
        return end.value.code, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope='module')
def weights():
    """Weights of a classifier of three classes without its backbone's norms."""
    torch.manual_seed(0)
    backbone = create_backbone('biformer-nano').state_dict()
    head = {'head.fc.weight': torch.ones(3, 256), 'head.fc.bias': torch.ones(3)}
    return {**{f'backbone.{key}': x for key, x in backbone.items()}, **head}


@pytest.mark.parametrize('command', ['', 'list', 'get', 'verify', 'push'])
def test_the_help_fits_one_screen(run, command, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')

    code, lines = run(*filter(None, [command, '--help']))

    assert code == 0
    assert 5 < len(lines) <= 24


def test_the_list_has_results_and_how_to_get_them(run, use_entries, cache):
    http = ['https://example.org/x.pth']
    use_entries(
        {'name': 'a', 'file': 'a.pth', 'metrics': {'box AP': 1.5, 'mask AP': 2}},
        {'name': 'b', **KNOWN, 'urls': http},
        {'name': 'c', 'urls': http},
        {'name': 'd', 'task': 'detection'},
        {'name': 'e'},
    )
    (cache / 'a.pth').write_bytes(b'a')

    code, lines = run('list')

    assert code == 0
    table = [' '.join(line.split()) for line in lines]
    assert table == [
        'name task result MB status',
        'a classification box AP 1.5, mask AP 2 cached',
        'b classification Top 1 Accuracy 98.5 0.0 get',
        'c classification Top 1 Accuracy 98.5 get --unverified',
        'd detection Top 1 Accuracy 98.5 by hand',
        'e classification Top 1 Accuracy 98.5 by hand',
    ]
    assert len(run('list', '--task', 'detection')[1]) == 2
    assert [line.split()[0] for line in run('list', '[ab]')[1]] == ['name', 'a', 'b']
    assert run('list', 'z*')[0] == (
        "error: no weights match 'z*'; list shows all names"
    )


def test_get_prints_the_path_and_the_conversion(run, use_entries, server, cache):
    urls = [server.put('nano.pth', CONTENT)]
    use_entries({**KNOWN, 'urls': urls, 'official': True})

    code, lines = run('get', 'biformer-nano')

    path = cache / 'nano.pth'
    assert code is None
    assert lines == [
        'official file; create_model converts it when it reads it. For a config: '
        f'python tools/convert_checkpoint.py {path} CONVERTED.pth --family biformer '
        '--arch nano',
        str(path),
    ]
    assert run('get', urls[0])[1][-1] == str(path)


def test_get_downloads_an_unknown_hash_with_the_option_alone(
    run, use_entries, server, cache
):
    use_entries({'urls': [server.put('nano.pth', CONTENT)]})

    code, lines = run('get', 'biformer-nano')
    assert code.startswith('error: biformer-nano_test: the hash of nano.pth is not')
    assert lines == []

    assert run('get', 'biformer-nano', '--unverified')[1][-1] == str(cache / 'nano.pth')


def test_get_with_a_wrong_hash_fails(run, use_entries, server, cache):
    use_entries({**KNOWN, 'urls': [server.put('nano.pth', CONTENT[::-1])]})

    code, _ = run('get', 'biformer-nano')

    assert code.startswith('error: nano.pth: http://127.0.0.1:')
    assert f'instead of {KNOWN["sha256"]}; kept as {cache}/nano.pth.unexpected' in code


def test_a_file_is_verified_by_its_hash_or_its_tensors(run, tmp_path):
    renamed = shutil.copyfile(NANO, tmp_path / 'renamed.pth')
    tensors = tmp_path / 'nano.safetensors'
    write_checkpoint(tensors, read_weights(NANO), {})

    code, lines = run('verify', renamed, tensors)

    assert code == 0
    digest, of_tensors = sha256(NANO), tensors_sha256(read_weights(NANO))
    assert lines == [
        f'{renamed}: is {NAME}, SHA-256 {digest}',
        f'{tensors}: has the tensors of {NAME}, SHA-256 {of_tensors}',
    ]


def test_a_file_with_another_hash_or_of_no_entry_fails(run, tmp_path, weights):
    changed, other = tmp_path / NANO.name, tmp_path / 'mine.pth'
    changed.write_bytes(NANO.read_bytes() + b'x')
    write_checkpoint(other, weights, {})

    code, lines = run('verify', changed, other)

    assert code == 1
    assert lines[0] == (
        f'{changed}: SHA-256 {sha256(changed)} instead of {sha256(NANO)} of {NAME}'
    )
    assert lines[1].startswith(f'{other}: is not in the list; SHA-256 {sha256(other)}')
    assert run('verify', 'none.pth')[0] == 'error: no such file: none.pth'


def test_all_cached_files_are_verified(run, use_entries, cache):
    use_entries(
        {**KNOWN, 'file': 'a.pth'},
        {'name': 'b', 'file': 'b.pth'},
    )
    (cache / 'a.pth').write_bytes(CONTENT)
    (cache / 'b.pth').write_bytes(b'b')

    code, lines = run('verify')

    assert code == 0
    assert len(lines) == 2
    (cache / 'a.pth').write_bytes(CONTENT[::-1])
    code, lines = run('verify')
    assert code == 1
    assert lines[-1] == '1 of 2 files are not what their name says'


def test_the_card_of_converted_weights_has_their_record(
    run, use_entries, weights, tmp_path
):
    pytest.importorskip('huggingface_hub')
    use_entries({'official': True})
    path, out = tmp_path / 'converted.safetensors', tmp_path / 'new' / 'out'
    record = dict(family='biformer', arch='nano', source='best.pth', source_sha256='ab')
    write_checkpoint(path, weights, record)

    code, lines = run('push', path, 'me/nano', '--out', out)

    assert code is None
    names = ['model.safetensors', 'config.json', 'README.md']
    assert lines == [str(out / name) for name in names]
    config = json.loads((out / 'config.json').read_text())
    assert config == {
        'architecture': 'mmsparse_biformer_nano',
        'model': 'biformer-nano',
        'library_name': 'mmsparse',
        'pipeline_tag': 'image-classification',
        'num_classes': 3,
        'pretrained_cfg': {'num_classes': 3},
        'sha256': sha256(out / 'model.safetensors'),
        'tensors_sha256': tensors_sha256(weights),
    }
    _, front, card = (out / 'README.md').read_text().split('---\n', 2)
    assert yaml.safe_load(front)['license'] == 'mit'
    for row in (
        '| page | https://example.org/page |',
        '| official file | best.pth |',
        '| SHA-256 of the official file | ab |',
    ):
        assert row in card.splitlines()


def test_the_card_of_a_config_has_its_results(run, tmp_path):
    pytest.importorskip('huggingface_hub')
    code, _ = run('push', NANO, 'me/nano', '--out', tmp_path, '--license', 'other')

    assert code is None
    _, front, card = (tmp_path / 'README.md').read_text().split('---\n', 2)
    (model,) = yaml.safe_load(front)['model-index']
    assert model['name'] == NAME
    (result,) = model['results']
    assert result['dataset'] == {'name': 'digits', 'type': 'digits'}
    assert result['metrics'] == [
        {'type': 'accuracy', 'value': 98.5, 'name': 'Top 1 Accuracy'}
    ]
    assert f'# {NAME}\n' in card
    assert (
        '| digits | Top 1 Accuracy | 98.5 | mmsparse f401d4e, make quickstart |' in card
    )
    call = "create_model('biformer-nano', pretrained='hf-hub:me/nano', num_classes=10)"
    assert call in card
    assert '| license | other |' in card


def test_what_may_not_be_pushed_is_refused(run, use_entries, weights, tmp_path):
    use_entries({'official': True, 'license': None})
    converted, mine = tmp_path / 'converted.pth', tmp_path / 'epoch_9.pth'
    record = dict(family='biformer', arch='nano', source='x')
    write_checkpoint(converted, weights, record)
    write_checkpoint(mine, weights, {})
    official = tmp_path / 'official.pth'
    family = FAMILIES['biformer']
    write_checkpoint(
        official, {family.official(key, 'nano'): x for key, x in weights.items()}, {}
    )
    out = ['me/nano', '--out', tmp_path / 'out']
    for arguments, message in (
        ([converted], 'https://example.org/page gives no license, so that these'),
        ([mine], '--model must name the model; it is one of biformer-base, '),
        ([mine, '--model', 'biformer-nano'], '--license must name the license, for'),
        ([official], 'official.pth is an official checkpoint of biformer; convert it'),
        (
            [mine, '--model', 'dat-nano', '--license', 'mit'],
            'epoch_9.pth does not fit dat-nano',
        ),
    ):
        code, _ = run('push', *arguments, *out)
        assert message in code, arguments
    assert not (tmp_path / 'out').exists()
