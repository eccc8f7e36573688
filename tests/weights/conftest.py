import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from mmsparse.weights import download, hub, manifest, sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of downloads; empty caches, and no pauses."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
    if find_spec('huggingface_hub') is not None:
        cache = str(tmp_path / 'hub')
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', cache)
    monkeypatch.setattr(download, 'PAUSE', 0)
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def use_entries(tmp_path, monkeypatch):
    """Replace the manifest; each entry has what differs from this one."""
    default = dict(
        name='biformer-nano_test',
        family='biformer',
        arch='nano',
        task='classification',
        config='configs/biformer/x.py',
        official=False,
        file='nano.pth',
        sha256=None,
        tensors_sha256=None,
        size=None,
        license='MIT',
        page='https://example.org/page',
        urls=[],
        data='digits',
        metrics={'Top 1 Accuracy': 98.5},
    )

    def use(*changes):
        path = tmp_path / 'weights.json'
        path.write_text(json.dumps([{**default, **x} for x in changes]))
        monkeypatch.setattr(manifest, 'MANIFEST', path)
        manifest.all_entries.cache_clear()
        return manifest.all_entries()

    yield use
    manifest.all_entries.cache_clear()


@pytest.fixture
def lines(logged_by):
    """The lines that are logged."""
    return logged_by(download, hub, sources)


@pytest.fixture
def server():
    """A server of files on a free port."""
    with Server() as running:
        yield running


class Server:
    """Files by path, and the requests for them.

    A path in ``interrupted`` has the numbers of bytes after which the next answers end
    too early; ``ranges`` is whether it answers with a range, ``tag`` is the ETag.
    """

    def __init__(self):
        self.files = {}
        self.types = {}
        self.interrupted = {}
        self.ranges = True
        self.tag = '"1"'
        self.requests = []

    def __enter__(self):
        handler = type('Handler', (Handler,), {'files': self})
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        return self

    def __exit__(self, *args):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, path, content, content_type='application/octet-stream'):
        """Serve a file; return its URL."""
        self.files[path], self.types[path] = content, content_type
        return f'{self.url}/{path}'


class Handler(BaseHTTPRequestHandler):
    files = None

    def log_message(self, *args):
        """Print nothing."""

    def do_GET(self):
        server, path = self.files, self.path[1:].partition('?')[0]
        wanted, condition = self.headers['Range'], self.headers['If-Range']
        server.requests.append((path, wanted, condition))
        if path not in server.files:
            self.send_error(404)
            return
        content, status, start = server.files[path], 200, 0
        if wanted and server.ranges and condition in (None, server.tag):
            start = int(wanted.removeprefix('bytes=').removesuffix('-'))
            if start >= len(content):
                self.send_error(416)
                return
            status = 206
        self.send_response(status)
        self.send_header('Content-Type', server.types[path])
        self.send_header('Content-Length', str(len(content) - start))
        self.send_header('ETag', server.tag)
        if status == 206:
            last = len(content) - 1
            self.send_header('Content-Range', f'bytes {start}-{last}/{len(content)}')
        self.end_headers()
        rest = content[start:]
        if server.interrupted.get(path):
            rest = rest[: server.interrupted[path].pop(0)]
        with suppress(ConnectionError):
            self.wfile.write(rest)
