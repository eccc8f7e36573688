"""Uploads to a hub on this machine, and downloads from it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN, FakeHub

from mmsparse import create_model
from mmsparse.checkpoint import read_checkpoint
from mmsparse.checkpoint.files import read_metadata, sha256
from mmsparse.checkpoint.state_dict import read_weights, tensors_sha256
from mmsparse.errors import UsageError
from mmsparse.integrations.timm import register_timm
from mmsparse.weights import hub, locate
from mmsparse.weights.cache import cached
from mmsparse.weights.repository import Card, write_repository

pytest.importorskip('huggingface_hub')

ROOT = Path(__file__).parents[2]
(NANO,) = (ROOT / 'weights').glob('biformer-nano_*_digits-*.pth')


def use_endpoint(monkeypatch, endpoint):
    """Change the endpoint of a library that is imported."""
    url = endpoint + '/{repo_id}/resolve/{revision}/{filename}'
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', endpoint)
    for module in ('constants', 'file_download'):  # the latter in old versions
        name = f'huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE'
        monkeypatch.setattr(name, url, raising=False)


@pytest.fixture
def fake(monkeypatch):
    """The hub; this process is logged in."""
    running = FakeHub()
    with running.serve() as endpoint:
        running.endpoint = endpoint
        use_endpoint(monkeypatch, endpoint)
        xet = 'huggingface_hub.constants.HF_HUB_DISABLE_XET'
        monkeypatch.setattr(xet, True, raising=False)  # not in old versions
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        yield running


def test_a_pushed_model_is_created_from_the_hub(fake, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/weights.py', 'push', NANO, 'me/nano'],
        cwd=tmp_path,
        env={**os.environ, 'HF_ENDPOINT': fake.endpoint, 'HF_HUB_DISABLE_XET': '1'},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f'{fake.endpoint}/me/nano/commit/{0:040x}',
        "use it: pretrained='hf-hub:me/nano'",
    ]
    files = fake.files('me/nano')
    assert set(files) == {'model.safetensors', 'config.json', 'config.py', 'README.md'}
    config = json.loads(files['config.json'])
    assert config['model'] == 'biformer-nano'
    assert config['num_classes'] == 10
    path = locate('hf-hub:me/nano')
    assert config['sha256'] == sha256(path)
    assert config['tensors_sha256'] == tensors_sha256(read_weights(NANO))
    image = torch.rand(1, 3, 64, 64)
    first, second = (
        create_model('biformer-nano', pretrained=x, num_classes=10).eval()(image)
        for x in (NANO, path)
    )
    assert torch.equal(first, second)


def test_a_revision_has_its_weights_and_is_cached(fake, monkeypatch):
    fake.repositories['a/b'] = []
    fake.commit('a/b', {'model.safetensors': b'old', 'pytorch_model.bin': b'x'})
    fake.commit('a/b', {'model.safetensors': b'new'})
    old = f'hf-hub:a/b@{0:040x}'

    assert locate('hf-hub:a/b').read_bytes() == b'new'
    assert locate(old).read_bytes() == b'old'

    fake.requests.clear()
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert locate('hf-hub:a/b').read_bytes() == b'new'
    assert locate(old).read_bytes() == b'old'
    assert fake.requests == []


def test_the_only_file_of_weights_has_any_name(fake, monkeypatch):
    fake.repositories['a/b'] = []
    fake.commit('a/b', {'README.md': b'', 'nano-abc.pth': b'x'})

    path = locate('hf-hub:a/b')

    assert path.name == 'nano-abc.pth'
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert locate('hf-hub:a/b') == path
    monkeypatch.delenv('HF_HUB_OFFLINE')
    fake.commit('a/b', {'other.pth': b'y'})
    with pytest.raises(
        UsageError, match=r"hf-hub:a/b must have .* got \['README.md', "
    ):
        locate('hf-hub:a/b')


def test_a_cached_model_needs_no_network(fake, monkeypatch, lines):
    fake.repositories['a/b'] = []
    fake.commit('a/b', {'model.safetensors': b'x'})
    path = locate('hf-hub:a/b')
    use_endpoint(monkeypatch, 'http://127.0.0.1:9')

    assert locate('hf-hub:a/b') == path
    assert 'Connection refused' in lines[0]
    with pytest.raises(UsageError) as caught:
        locate('hf-hub:a/c')
    assert str(caught.value) == (
        f'hf-hub:a/c is not in {hub.hub_folder()} (no network or no answer). Weights '
        f'in the cache: {", ".join(cached())}. Fetch it later: mmsparse weights get '
        'hf-hub:a/c'
    )


def test_a_damaged_file_is_kept_aside_and_downloaded_again(fake):
    fake.repositories['a/b'] = []
    fake.commit('a/b', {'model.safetensors': b'weights'})
    fake.damaged['model.safetensors'] = b'WEIGHTS'
    expected, found = (hashlib.sha256(x).hexdigest() for x in (b'weights', b'WEIGHTS'))

    with pytest.raises(UsageError, match=f'SHA-256 {found} instead of {expected}; kep'):
        locate('hf-hub:a/b')

    fake.damaged.clear()
    assert locate('hf-hub:a/b').read_bytes() == b'weights'
    (aside,) = hub.hub_folder().glob('models--a--b/blobs/*.unexpected-*')
    assert aside.read_bytes() == b'WEIGHTS'


def test_mistakes_are_one_line_with_the_way_out(fake, tmp_path, monkeypatch):
    fake.repositories['a/b'] = []
    fake.commit('a/b', {'model.safetensors': b'x'})
    (tmp_path / 'new').mkdir()

    def push():
        hub.upload(tmp_path / 'new', 'me/new', private=True, message='Add')

    for call, message in (
        (lambda: locate('hf-hub:a/none'), 'a/none: no such repository, or a private'),
        (lambda: locate('hf-hub:a/b@none'), 'a/b@none: no such branch, tag or commit'),
        (lambda: hub.upload(tmp_path, 'new', False, ''), "be OWNER/NAME; got 'new'"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    with pytest.raises(UsageError, match=r'me/new: .*; log in by: hf auth login'):
        push()
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(
        UsageError, match='HF_HUB_OFFLINE is set, so that me/new is not'
    ):
        push()
    assert 'me/new' not in fake.repositories


def test_a_new_repository_can_be_private(fake, tmp_path):
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'README.md').write_text('x')

    hub.upload(tmp_path / 'new', 'me/new', private=True, message='Add')

    assert fake.private == {'me/new'}
    assert fake.files('me/new') == {'README.md': b'x'}


def test_without_the_library_the_error_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)

    with pytest.raises(UsageError, match='pip install huggingface_hub safetensors'):
        locate('hf-hub:a/b')


def test_a_pushed_classifier_is_a_model_of_timm(fake, tmp_path):
    timm = pytest.importorskip('timm')
    weights = read_weights(NANO)
    meta = read_metadata(NANO, read_checkpoint(NANO))
    card = Card(name='nano', model='biformer-nano', license='apache-2.0')
    (tmp_path / 'new').mkdir()
    write_repository(tmp_path / 'new', 'me/nano', weights, meta, card)
    hub.upload(tmp_path / 'new', 'me/nano', private=False, message='Add')
    register_timm()

    model = timm.create_model('hf-hub:me/nano', pretrained=True).eval()

    image = torch.rand(1, 3, 64, 64)
    expected = create_model('biformer-nano', pretrained=NANO).eval()
    assert torch.equal(model(image), expected(image))
