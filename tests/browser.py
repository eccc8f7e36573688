"""Headless Chromium, controlled through its debugging pipe."""

import base64
import json
import os
import shutil
import subprocess
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome', 'headless_shell')
OPTIONS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--remote-debugging-pipe',
)


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A page in a browser; messages end with a zero byte in both directions."""

    def __init__(self, program: str, profile: str) -> None:
        its_input, self._output = os.pipe()
        self._input, its_output = os.pipe()

        def connect() -> None:
            # Through high file descriptors, so that neither overwrites the other.
            source, target = os.dup2(its_input, 103), os.dup2(its_output, 104)
            os.dup2(source, 3)
            os.dup2(target, 4)

        self._process = subprocess.Popen(
            [program, *OPTIONS, f'--user-data-dir={profile}', 'about:blank'],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_input)
        os.close(its_output)
        self._received, self._count, self._session = b'', 0, None
        page = self.call('Target.createTarget', url='about:blank')['targetId']
        attached = self.call('Target.attachToTarget', targetId=page, flatten=True)
        self._session = attached['sessionId']

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = dict(id=self._count, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._output, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._read()
            if answer.get('id') == self._count:
                if 'error' in answer:
                    raise RuntimeError(answer['error'])
                return answer['result']

    def _read(self) -> dict[str, Any]:
        while b'\0' not in self._received:
            read = os.read(self._input, 2**16)
            if not read:
                raise RuntimeError('The browser has exited.')
            self._received += read
        line, _, self._received = self._received.partition(b'\0')
        return json.loads(line)

    def open(self, address: str) -> None:
        self.call('Page.navigate', url=address)

    def evaluate(self, code: str) -> Any:
        answer = self.call('Runtime.evaluate', expression=code, returnByValue=True)
        return answer['result'].get('value')

    def click(self, x: float, y: float) -> None:
        for kind in ('mousePressed', 'mouseReleased'):
            self.call(
                'Input.dispatchMouseEvent',
                type=kind,
                x=x,
                y=y,
                button='left',
                clickCount=1,
            )

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call('Page.captureScreenshot')['data'])

    def close(self) -> None:
        for end in (self._output, self._input):
            os.close(end)
        self._process.terminate()
        self._process.wait(timeout=20)
