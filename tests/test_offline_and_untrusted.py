"""No network unless a URL is named, and no code from an option."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from mmsparse.apis import config_arguments

ROOT = Path(__file__).parents[1]
# Connections, and requests for the address of another machine, raise.
OFFLINE = """
import importlib, pkgutil, socket, warnings

def refuse(*args, **kwargs):
    raise AssertionError(f'the network was used: {args}')

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
warnings.simplefilter('ignore')

import mmsparse
# They need Triton and transformers.
OPTIONAL = ('mmsparse.ops.triton.', 'mmsparse.integrations.huggingface')
for module in pkgutil.walk_packages(mmsparse.__path__, 'mmsparse.'):
    if not module.name.startswith(OPTIONAL):
        importlib.import_module(module.name)

import torch
from mmsparse.apis import build_model, read_config
for config in CONFIGS:
    model = build_model(read_config(config)).eval()
    with torch.no_grad():
        model.backbone(torch.zeros(1, 3, 64, 64))
print('offline')
"""
CONFIGS = (
    'dat/fpn_dat-nano_1xb8-1600i_digits.py',
    'shunted_transformer/shunted-nano_1xb32-14e_digits.py',
    'focus_detr/focus-detr_biformer-nano_1xb4-4e_digits.py',
)


def test_no_import_and_no_model_uses_the_network(tmp_path):
    paths = [str(ROOT / 'configs' / path) for path in CONFIGS]

    done = subprocess.run(
        [sys.executable, '-c', OFFLINE.replace('CONFIGS', repr(paths))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.stdout.splitlines()[-1:] == ['offline'], done.stderr[-3000:]


@pytest.mark.parametrize(
    'value',
    [
        "__import__('os').mkdir('ran')",
        "[__import__('os').mkdir('ran')]",
        "(__import__('os').mkdir('ran'),1)",
        '{{_base_.x}}',
        '$(mkdir ran)',
        "eval('1+1')",
    ],
)
def test_an_option_is_a_value_and_no_code(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    config_arguments(parser)

    options = parser.parse_args(['--cfg-options', f'model.x={value}']).cfg_options

    def flat(x):
        return [z for y in x for z in flat(y)] if isinstance(x, (list, tuple)) else [x]

    assert not list(tmp_path.iterdir())
    assert all(isinstance(x, (str, int)) for x in flat(options['model.x']))
