"""As much of the Hugging Face hub's API as its library needs for models, in memory.

Commits are numbered; uploads are by Git LFS, not by Xet.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = 'hf_of_a_test'
LARGE = ('.safetensors', '.bin', '.pth')


class FakeHub:
    """Repositories by name: a list of commits, each a dict of files."""

    def __init__(self):
        self.repositories = {}
        self.private = set()
        self.objects = {}
        self.requests = []

    def commit(self, repository, files):
        """Add a commit that changes these files."""
        commits = self.repositories[repository]
        commits.append({**(commits[-1] if commits else {}), **files})

    def files(self, repository, revision='main'):
        """Return the files of a branch or commit, None if there is no such one."""
        commits = self.repositories[repository]
        if revision == 'main':
            return commits[-1] if commits else {}
        numbers = {sha(number): number for number in range(len(commits))}
        return commits[numbers[revision]] if revision in numbers else None

    def head(self, repository, revision):
        """Return the full name of the commit."""
        last = sha(len(self.repositories[repository]) - 1)
        return last if revision == 'main' else revision

    @contextmanager
    def serve(self):
        """Serve on a free port; yield the endpoint."""
        handler = type('Handler', (Handler,), {'hub': self})
        server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}'
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def sha(number):
    return f'{number:040x}'


class Handler(BaseHTTPRequestHandler):
    hub = None
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        """Print nothing."""

    def do_GET(self):
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self):
        length = int(self.headers.get('Content-Length', 0))
        self.body = self.rfile.read(length)
        path = self.path.partition('?')[0]
        self.hub.requests.append((self.command, path))
        for method, pattern, answer in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return answer(self, *found.groups())
        return self.fail(404, 'EntryNotFound', f'{self.command} {path}')

    @property
    def endpoint(self):
        return f'http://{self.headers["Host"]}'

    def answer(self, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {'Content-Length': len(data), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def fail(self, status, code, message):
        self.send_response(status)
        self.send_header('X-Error-Code', code)
        self.send_header('X-Error-Message', message)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def may_write(self):
        if self.headers.get('Authorization') == f'Bearer {TOKEN}':
            return True
        self.fail(401, 'Unauthorized', 'Invalid username or password.')
        return False

    def find(self, repository, revision):
        """Return the files of a revision, None after an error answer."""
        if repository not in self.hub.repositories:
            self.fail(404, 'RepoNotFound', 'Repository not found')
            return None
        files = self.hub.files(repository, revision)
        if files is None:
            self.fail(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return files

    def create(self):
        if not self.may_write():
            return
        request = json.loads(self.body)
        owner = request.get('organization') or 'me'
        name = f'{owner}/{request["name"]}'
        if name in self.hub.repositories:
            self.fail(409, 'Conflict', 'You already created this model repo')
            return
        self.hub.repositories[name] = []
        if request.get('private') or request.get('visibility') == 'private':
            self.hub.private.add(name)
        self.answer({'url': f'{self.endpoint}/{name}', 'name': name})

    def validate(self):
        self.answer({'errors': [], 'warnings': []})

    def info(self, repository, revision='main'):
        files = self.find(repository, revision)
        if files is not None:
            self.answer(
                {
                    'id': repository,
                    'sha': self.hub.head(repository, revision),
                    'siblings': [{'rfilename': name} for name in files],
                }
            )

    def tree(self, repository, revision):
        files = self.find(repository, revision)
        if files is not None:
            self.answer(
                [
                    {'type': 'file', 'path': name, 'size': len(x), 'oid': name}
                    for name, x in files.items()
                ]
            )

    def preupload(self, repository, revision):
        if self.may_write():
            modes = [
                {
                    'path': file['path'],
                    'uploadMode': 'lfs' if file['path'].endswith(LARGE) else 'regular',
                    'shouldIgnore': False,
                }
                for file in json.loads(self.body)['files']
            ]
            self.answer({'files': modes})

    def batch(self, repository):
        objects = [
            {
                **wanted,
                'actions': {'upload': {'href': f'{self.endpoint}/lfs/{wanted["oid"]}'}},
            }
            for wanted in json.loads(self.body)['objects']
        ]
        self.answer({'objects': objects, 'transfer': 'basic'})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.answer({})

    def commit(self, repository, revision):
        if not self.may_write():
            return
        files = {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation['value']
            if operation['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            if operation['key'] == 'lfsFile':
                files[value['path']] = self.hub.objects[value['oid']]
        self.hub.commit(repository, files)
        oid = self.hub.head(repository, 'main')
        url = f'{self.endpoint}/{repository}/commit/{oid}'
        self.answer({'commitOid': oid, 'commitUrl': url, 'hookOutput': ''})

    def resolve(self, repository, revision, name):
        files = self.find(repository, revision)
        if files is None:
            return
        if name not in files:
            self.fail(404, 'EntryNotFound', f'no {name}')
            return
        self.answer(
            files[name],
            ETag=f'"{hashlib.sha256(files[name]).hexdigest()}"',
            X_Repo_Commit=self.hub.head(repository, revision),
        )


REPOSITORY = r'([\w.-]+/[\w.-]+)'
ROUTES = (
    ('POST', '/api/repos/create', Handler.create),
    ('POST', '/api/validate-yaml', Handler.validate),
    ('GET', f'/api/models/{REPOSITORY}', Handler.info),
    ('GET', f'/api/models/{REPOSITORY}/revision/(.+)', Handler.info),
    ('GET', f'/api/models/{REPOSITORY}/tree/(.+)', Handler.tree),
    ('POST', f'/api/models/{REPOSITORY}/preupload/(.+)', Handler.preupload),
    ('POST', f'/{REPOSITORY}.git/info/lfs/objects/batch', Handler.batch),
    ('PUT', r'/lfs/(\w+)', Handler.store),
    ('POST', f'/api/models/{REPOSITORY}/commit/(.+)', Handler.commit),
    ('HEAD', f'/{REPOSITORY}/resolve/([^/]+)/(.+)', Handler.resolve),
    ('GET', f'/{REPOSITORY}/resolve/([^/]+)/(.+)', Handler.resolve),
)
