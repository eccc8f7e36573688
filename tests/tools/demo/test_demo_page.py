"""The command, and its page in a browser."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from PIL import Image

ROOT = Path(__file__).parents[3]
BROWSER, LEGEND = find_browser(), '#legend .prose'
# Runs a command, and reports every address of another machine that it uses.
PROGRAM = """
import runpy, socket, sys

def watch(function):
    def call(*args, **options):
        address = args[1] if isinstance(args[0], socket.socket) else args[0]
        host = address[0] if isinstance(address, tuple) else address
        if host not in ('127.0.0.1', 'localhost'):
            print('network:', host, flush=True)
        return function(*args, **options)
    return call

socket.socket.connect = watch(socket.socket.connect)
socket.getaddrinfo = watch(socket.getaddrinfo)
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition('/')[0])
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture
def address(tmp_path):
    """Address of a page; its command is interrupted at the end."""
    pytest.importorskip('gradio')
    if BROWSER is None:
        pytest.skip('needs a Chromium')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    log = tmp_path / 'log'
    command = ['-c', PROGRAM, ROOT / 'tools/demo.py', '--port', str(port)]
    with log.open('w') as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            # Jobs in the background of a shell ignore it, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for(lambda: 'Ctrl+C' in log.read_text() or process.poll(), 'no page', 120)
        (served,) = re.findall(r'http://127\.0\.0\.1:\d+/', log.read_text())
        yield served
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
    assert log.read_text().splitlines() == [
        f'http://127.0.0.1:{port}/ (Ctrl+C ends the demo)'
    ]


@pytest.fixture
def page(address, tmp_path):
    browser = Browser(BROWSER, str(tmp_path / 'profile'))
    size = dict(width=1280, height=900, deviceScaleFactor=1, mobile=False)
    browser.call('Emulation.setDeviceMetricsOverride', **size)
    browser.open(address)
    yield browser
    browser.close()


def wait_for(condition, problem, seconds=40):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, problem
        time.sleep(0.1)


def text_of(page, selector):
    return page.evaluate(f'document.querySelector({selector!r})?.innerText ?? ""')


def wait_for_text(page, selector, text):
    wait_for(lambda: text in text_of(page, selector), f'{selector} lacks {text!r}')


def drawing(page):
    """Return the pixels of the drawing."""
    code = """(async () => {
      const image = document.querySelector('#result img');
      const blob = await (await fetch(image.src)).blob();
      return [...new Uint8Array(await blob.arrayBuffer())];
    })()"""
    answer = page.call(
        'Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True
    )
    content = bytes(answer['result']['value'])
    return np.asarray(Image.open(io.BytesIO(content)).convert('RGB')).astype(int)


def upload(page, path):
    root = page.call('DOM.getDocument')['root']['nodeId']
    selector = '#upload input[type=file]'
    node = page.call('DOM.querySelector', nodeId=root, selector=selector)
    page.call('DOM.setFileInputFiles', nodeId=node['nodeId'], files=[str(path)])


def click(page, selector, x=0.5, y=0.5):
    """Click at a point from (0, 0) to (1, 1) of an element."""
    box = f'document.querySelector({json.dumps(selector)}).getBoundingClientRect()'
    code = f'(box => [box.x + {x} * box.width, box.y + {y} * box.height])({box})'
    page.click(*page.evaluate(code))


def test_a_visitor_uploads_an_image_chooses_a_model_and_clicks(page, tmp_path):
    Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (480, 640), np.uint8)
    ).save(tmp_path / 'gray.png')
    (tmp_path / 'text.png').write_text('no image')
    wait_for_text(page, LEGEND, 'of 128 x 128 pixels')  # an example
    assert text_of(page, '#notice').strip() == ''

    upload(page, tmp_path / 'text.png')
    wait_for_text(page, '.toast-body', 'text.png is no image of type')
    wait_for_text(page, '#upload', 'Click to Upload')
    upload(page, tmp_path / 'gray.png')
    wait_for_text(page, LEGEND, 'of 640 x 480 pixels')

    click(page, '#model input')
    options = "[...document.querySelectorAll('[role=option]')]"
    wait_for(lambda: page.evaluate(f'{options}.length'), 'no models')
    page.evaluate(
        f"{options}.find(x => x.innerText.includes('dat-nano, random'))"
        ".dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    wait_for_text(page, '#notice', 'dat-nano has random weights')
    wait_for_text(page, '#drawing', 'Sampled keys')

    before, legend = drawing(page), text_of(page, LEGEND)
    click(page, '#image img', 0.25, 0.75)
    wait_for(lambda: text_of(page, LEGEND) != legend, 'the query is the same')
    assert re.match(r'Query at x (159|160), y (359|360) ', text_of(page, LEGEND))
    wait_for(
        lambda: np.abs(drawing(page) - before).max() > 50, 'the drawing is the same'
    )
    names = "performance.getEntriesByType('resource').map(x => x.name)"
    elsewhere = f'{names}.filter(x => !x.startsWith(location.origin))'
    assert page.evaluate(elsewhere) == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['--model', 'dat-tinny'],
            '--model: name must be one of .* did you mean .dat-tiny.',
        ),
        (['--checkpoint', 'a.pth'], '--checkpoint needs --model, one of biformer-base'),
        (['--model', 'dat-nano', '--checkpoint', 'a.pth'], 'no such file: a.pth'),
        (['--host', '203.0.113.1'], 'cannot serve at --host 203.0.113.1 --port 7860: '),
        (['--port', '99999'], 'cannot serve at --host 127.0.0.1 --port 99999: '),
    ],
)
def test_wrong_options_are_an_error(options, message, run_tool, tmp_path):
    pytest.importorskip('gradio')
    done = run_tool('demo.py', *options, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert re.fullmatch(f'error: {message}.*\n', done.stderr)


def test_a_port_in_use_is_an_error(run_tool, tmp_path):
    pytest.importorskip('gradio')
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = run_tool('demo.py', '--port', port, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr == (
        f'error: cannot serve at --host 127.0.0.1 --port {port}: Address already in '
        'use; choose another by --host or --port\n'
    )
