"""From a source to a local file."""

import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mmsparse import create_model
from mmsparse.checkpoint.files import sha256
from mmsparse.conversion.families import FAMILIES
from mmsparse.errors import UsageError
from mmsparse.weights import locate
from mmsparse.weights.cache import remembered_sha256
from mmsparse.weights.sources import obtain

CONTENT = b'weights of a test'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
KNOWN = dict(sha256=DIGEST, size=len(CONTENT))


@pytest.fixture
def entry(use_entries, server):
    """An entry with a known hash, which the server has."""
    (entry,) = use_entries({**KNOWN, 'urls': [server.put('nano.pth', CONTENT)]})
    return entry


def test_a_path_is_the_file_itself(tmp_path):
    path = tmp_path / 'mine.pth'
    path.write_bytes(CONTENT)

    assert locate(path) == locate(str(path)) == path


def test_a_file_has_a_url_too(tmp_path):
    path = tmp_path / 'my weights.pth'
    path.touch()

    assert locate(path.as_uri()) == path


def test_the_name_of_a_model_is_that_of_its_weights():
    assert locate('biformer-nano') == locate(True, 'biformer-nano')


def test_the_weights_in_the_repository_need_no_network(server):
    path = locate(True, 'biformer-nano')

    assert sha256(path).startswith(path.stem.rpartition('-')[2])
    assert locate('biformer-nano_1xb32-9e_digits') == path


def test_an_installed_package_has_the_files_of_the_repository(
    use_entries, tmp_path, monkeypatch
):
    package = tmp_path / 'site-packages' / 'mmsparse'
    monkeypatch.setattr('mmsparse.weights.cache.PACKAGE', package)
    (package / '.mim' / 'weights').mkdir(parents=True)
    path = package / '.mim' / 'weights' / 'nano.pth'
    path.write_bytes(CONTENT)
    use_entries({**KNOWN, 'urls': ['weights/nano.pth']})

    assert locate(True, 'biformer-nano') == path
    path.write_bytes(b'changed')
    with pytest.raises(UsageError, match=f'no file with its SHA-256 {DIGEST} is at'):
        locate(True, 'biformer-nano')


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        (
            (True, 'biformer-nan'),
            "no weights of 'biformer-nan' are known; did you mean",
        ),
        (('none/x.pth',), 'no such file: none/x.pth'),
        (('dat-pp-tini',), "no such file: dat-pp-tini; did you mean 'dat-pp-tiny'"),
        ((True, 'xyzzy'), 'known are biformer-nano, '),
        (('ftp://x.org/a.pth',), "must begin with http:// or https://; got 'ftp://"),
        (('https://x.org/',), "must end with the name of a file; got 'https://x.org/'"),
        (('hf-hub:alone',), "OWNER/NAME@REVISION; got 'hf-hub:alone'"),
        (
            ('me/dat',),
            "no such file: me/dat; for a repository of the hub, give 'hf-hub:",
        ),
        (('hf_hub:me/dat',), "for a repository of the hub, give 'hf-hub:me/dat'"),
        (('tests',), 'tests is a folder; give the file of weights in it'),
        (('',), 'weights must be a path, a URL, hf-hub:OWNER/NAME, a name in'),
        ((0,), 'or True; got 0'),
        (({'weight': list(range(99))},), 'or True; got a dict'),
    ],
)
def test_an_unknown_source_is_an_error_with_the_closest_names(source, message):
    with pytest.raises(UsageError) as caught:
        locate(*source)

    assert message in str(caught.value)


def test_an_entry_is_downloaded_once(entry, server, cache):
    path = locate(True, 'biformer-nano')

    assert path == cache / 'nano.pth'
    assert path.read_bytes() == CONTENT
    assert locate(True, 'biformer-nano') == locate(entry.name) == path
    assert len(server.requests) == 1


def test_an_entry_with_a_known_hash_comes_first(use_entries):
    use_entries({'name': 'a'}, {'name': 'b', **KNOWN})

    with pytest.raises(UsageError, match='^b: nano.pth is a file of the repository'):
        locate(True, 'biformer-nano')


def test_a_file_of_another_hash_in_the_cache_is_kept_aside(entry, cache, lines):
    path = cache / 'nano.pth'
    path.write_bytes(b'changed')

    assert locate(True, 'biformer-nano').read_bytes() == CONTENT

    digest = hashlib.sha256(b'changed').hexdigest()
    aside = cache / f'nano.pth.unexpected-{digest[:8]}'
    assert aside.read_bytes() == b'changed'
    text = f'{path} has SHA-256 {digest} instead of {DIGEST}; kept as {aside}'
    assert lines[0] == text


@pytest.mark.parametrize(
    'place', ['torch/hub/checkpoints', 'hub/models--a--b/snapshots/1']
)
def test_a_file_under_any_name_is_found_by_its_hash(entry, server, tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'other.pth').write_bytes(CONTENT[::-1])  # of the same size
    (folder / 'renamed.bin').write_bytes(CONTENT)

    assert obtain(entry) == folder / 'renamed.bin'
    assert server.requests == []


def test_hashes_are_remembered_until_a_file_changes(cache, monkeypatch):
    path = cache / 'x.pth'
    path.write_bytes(CONTENT)
    read = []
    monkeypatch.setattr(
        'mmsparse.weights.cache.sha256', lambda x: read.append(x) or sha256(x)
    )

    digests = [remembered_sha256(path) for _ in range(3)]
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(0, 0))
    digests.append(remembered_sha256(path))

    assert digests == [DIGEST] * 3 + [hashlib.sha256(CONTENT[::-1]).hexdigest()]
    assert read == [path] * 2


@pytest.mark.parametrize('text', ['', '[]', '{"x": 1}', '{'])
def test_damaged_records_are_written_again(cache, text):
    path = cache / 'x.pth'
    path.write_bytes(CONTENT)
    (cache / '.mmsparse.json').write_text(text)

    assert remembered_sha256(path) == DIGEST
    assert str(path) in json.loads((cache / '.mmsparse.json').read_text())


def test_a_file_of_an_unknown_hash_needs_a_word_of_the_user(use_entries, server, cache):
    url = server.put('nano.pth', CONTENT)
    (entry,) = use_entries({'urls': [url]})

    with pytest.raises(UsageError) as caught:
        locate(True, 'biformer-nano')

    assert str(caught.value) == (
        'biformer-nano_test: the hash of nano.pth is not known, so that it is not '
        'downloaded unless you run: mmsparse weights get biformer-nano_test '
        '--unverified; or download it from https://example.org/page and give its path, '
        f'or copy it to {cache / "nano.pth"}'
    )
    assert server.requests == []
    assert obtain(entry, unverified=True) == cache / 'nano.pth'


def test_an_unverified_file_is_loaded_with_a_warning(use_entries, cache, lines):
    use_entries({'official': True})
    path = cache / 'nano.pth'
    path.write_bytes(CONTENT)

    assert locate(True, 'biformer-nano') == path

    text = f'{path} is unverified, its hash is not known; SHA-256 {DIGEST}'
    assert lines == [text]


def test_an_official_file_in_the_cache_is_converted(use_entries, cache):
    use_entries({'official': True})
    model = create_model('biformer-nano', num_classes=1000).eval()
    family = FAMILIES['biformer']
    official = {family.official(k, 'nano'): x for k, x in model.state_dict().items()}
    torch.save({'model': official}, cache / 'nano.pth')

    path = locate(True, 'biformer-nano')

    found = create_model('biformer-nano', pretrained=path).eval()
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(found(image), model(image))


def test_without_any_address_the_page_is_named(use_entries, cache):
    use_entries({'official': True})

    with pytest.raises(UsageError, match='nor an address .* from https://example.org'):
        locate(True, 'biformer-nano')


def test_offline_the_error_has_what_is_cached_and_the_command(
    use_entries, server, cache, monkeypatch
):
    wanted = {**KNOWN, 'urls': [server.put('nano.pth', CONTENT)]}
    use_entries(wanted, {'name': 'mine', 'arch': 'tiny', 'file': 'mine.pth'})
    (cache / 'mine.pth').write_bytes(b'mine')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')

    with pytest.raises(UsageError) as caught:
        locate(True, 'biformer-nano')

    assert str(caught.value) == (
        f'biformer-nano_test is not in {cache} (HF_HUB_OFFLINE is set). Weights in the '
        'cache: mine. Fetch it later: mmsparse weights get biformer-nano_test'
    )
    assert locate(True, 'biformer-tiny') == cache / 'mine.pth'
    assert server.requests == []


def test_without_a_network_the_error_is_the_same(use_entries):
    use_entries({**KNOWN, 'urls': ['http://127.0.0.1:9/nano.pth']})

    with pytest.raises(UsageError) as caught:
        locate(True, 'biformer-nano')

    assert str(caught.value) == (
        'nano.pth: http://127.0.0.1:9/nano.pth: [Errno 111] Connection refused (no '
        'network or no answer). Weights in the cache: none. Fetch it later: mmsparse '
        'weights get biformer-nano_test'
    )


def test_a_cached_url_needs_no_network(server, cache, monkeypatch):
    url = server.put('x.pth', CONTENT)
    path = locate(url)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')

    assert locate(url) == path == cache / 'x.pth'
    with pytest.raises(UsageError, match=f'y.pth is not in {cache} .HF_HUB_OFFLINE'):
        locate(f'{server.url}/y.pth')


def test_a_hash_in_a_url_is_checked_and_a_date_is_none(server, cache):
    right = locate(server.put(f'x-{DIGEST[:8]}.pth', CONTENT))

    assert right == cache / f'x-{DIGEST[:8]}.pth'
    assert locate(server.put('x-20230101.pth', CONTENT)).read_bytes() == CONTENT
    with pytest.raises(UsageError, match=f'has SHA-256 {DIGEST} instead of abcdef01'):
        locate(server.put('x-abcdef01.pth', CONTENT))


def test_files_of_two_urls_with_the_same_name_are_both_kept(server, cache):
    first = server.put('a/model.safetensors', CONTENT)
    second = server.put('b/model.safetensors', CONTENT[::-1])

    for _ in range(2):
        assert locate(first).read_bytes() == CONTENT
        assert locate(second).read_bytes() == CONTENT[::-1]

    assert len(server.requests) == 2


def test_threads_download_a_file_once(entry, server, cache):
    server.put('nano.pth', CONTENT)

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: locate(True, 'biformer-nano'), range(4)))

    assert paths == [cache / 'nano.pth'] * 4
    assert len(server.requests) == 1


def test_processes_download_a_file_once(server, cache):
    url = server.put('x.pth', CONTENT * 100_000)
    context = multiprocessing.get_context('fork')  # others import for seconds

    ranks = [context.Process(target=locate, args=(url,)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)

    assert [rank.exitcode for rank in ranks] == [0] * 3
    assert (cache / 'x.pth').read_bytes() == CONTENT * 100_000
    assert len(server.requests) == 1


def test_a_cache_that_cannot_be_written_is_read(entry, cache, monkeypatch):
    (cache / 'nano.pth').write_bytes(CONTENT)

    def refuse(*args, **kwargs):
        raise PermissionError('read-only')

    monkeypatch.setattr('mmsparse.weights.cache.FileLock', refuse)
    monkeypatch.setattr('mmsparse.weights.sources.FileLock', refuse)

    assert obtain(entry) == cache / 'nano.pth'
