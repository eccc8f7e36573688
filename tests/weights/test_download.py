"""Downloads from a server on this machine."""

import hashlib
import json

import pytest

from mmsparse.weights.download import MismatchError, NotReachedError, download

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = b'other weights'
OTHER_DIGEST = hashlib.sha256(OTHER).hexdigest()


@pytest.fixture
def target(tmp_path):
    return tmp_path / 'x.pth'


@pytest.fixture
def part(target):
    """Write the part of an earlier download."""

    def write(content, url, version='"1"'):
        target.with_name('x.pth.part').write_bytes(content)
        note = json.dumps({'url': url, 'version': version})
        target.with_name('x.pth.part.json').write_text(note)

    return write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_when_it_is_complete(server, target, tmp_path):
    url = server.put('x.pth', CONTENT)

    assert download([url], target, DIGEST) == url

    assert target.read_bytes() == CONTENT
    assert names(tmp_path) == ['torch', 'x.pth']


def test_an_interrupted_download_resumes(server, target):
    url = server.put('x.pth', CONTENT)
    server.interrupted['x.pth'] = [300_000, 200_000]

    download([url], target)

    assert target.read_bytes() == CONTENT
    ranges = [wanted for _, wanted, _ in server.requests]
    assert ranges == [None, 'bytes=300000-', 'bytes=500000-']


def test_a_download_without_progress_ends(server, target):
    url = server.put('x.pth', CONTENT)
    server.interrupted['x.pth'] = [300_000, 0]

    with pytest.raises(NotReachedError, match=r'x.pth: ended after 300000 of 1024000'):
        download([url], target)

    assert not target.exists()
    download([url], target)
    assert server.requests[-1] == ('x.pth', 'bytes=300000-', '"1"')
    assert target.read_bytes() == CONTENT


def test_a_new_process_resumes_unless_the_file_changed(server, target, part):
    url = server.put('x.pth', CONTENT)
    part(b'of an older version', url, version='"0"')

    download([url], target)

    assert server.requests == [('x.pth', 'bytes=19-', '"0"')]
    assert target.read_bytes() == CONTENT


def test_only_a_file_with_a_known_hash_resumes_from_a_mirror(server, target, part):
    url = server.put('x.pth', CONTENT)
    part(CONTENT[:1000], 'http://example.org/x.pth')

    download([url], target, DIGEST)

    assert server.requests.pop() == ('x.pth', 'bytes=1000-', None)
    target.unlink()
    part(CONTENT[:1000], 'http://example.org/x.pth')
    download([url], target)
    assert server.requests.pop() == ('x.pth', None, None)
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything(server, target, part):
    url = server.put('x.pth', CONTENT)
    server.ranges = False
    part(CONTENT[:1000], url)

    download([url], target, DIGEST)

    assert target.read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_dropped(server, target, part):
    url = server.put('x.pth', CONTENT)
    part(CONTENT + b'more', url)

    download([url], target, DIGEST)

    assert target.read_bytes() == CONTENT


def test_a_wrong_hash_is_an_error_and_the_file_is_kept_aside(server, target, tmp_path):
    url = server.put('x.pth', OTHER)
    aside = tmp_path / f'x.pth.unexpected-{OTHER_DIGEST[:8]}'

    with pytest.raises(MismatchError) as caught:
        download([url], target, DIGEST)

    assert str(caught.value) == (
        f'x.pth: {url}: has SHA-256 {OTHER_DIGEST} instead of {DIGEST}; kept as {aside}'
    )
    assert aside.read_bytes() == OTHER
    assert names(tmp_path) == ['torch', aside.name]


def test_a_resumed_file_with_a_wrong_hash_is_downloaded_again(server, target, part):
    url = server.put('x.pth', CONTENT)
    part(b'of something else', 'http://example.org/x.pth')

    download([url], target, DIGEST)

    assert target.read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_mirrors_are_tried_in_order(server, target, tmp_path):
    urls = [
        f'{server.url}/missing.pth',
        server.put('page', b'<html>', 'text/html; charset=utf-8'),
        server.put('wrong.pth', OTHER),
        server.put('right.pth', CONTENT),
        server.put('unused.pth', CONTENT),
    ]

    assert download(urls, target, DIGEST) == urls[3]

    paths = [path for path, _, _ in server.requests]
    assert paths == ['missing.pth', 'page', 'wrong.pth', 'right.pth']
    assert target.read_bytes() == CONTENT
    aside = f'x.pth.unexpected-{OTHER_DIGEST[:8]}'
    assert names(tmp_path) == ['torch', 'x.pth', aside]


def test_the_error_has_the_reason_of_every_url(server, target):
    page = server.put('page', b'<html>', 'text/html')
    missing = f'{server.url}/missing.pth'

    with pytest.raises(NotReachedError) as caught:
        download([missing, page, 'http://127.0.0.1:9/x.pth'], target)

    assert str(caught.value) == (
        f'x.pth: {missing} answers 404 Not Found; '
        f'{page}: answers with a web page instead of a file; '
        'http://127.0.0.1:9/x.pth: [Errno 111] Connection refused'
    )
