import re
from pathlib import Path

import pytest
import torch

from mmsparse.apis import build_model, read_config

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'mmpretrain': ROOT / 'configs/biformer/biformer-pico_1xb32-12e_digits.py',
    'mmdet': ROOT / 'configs/biformer/atss_biformer-pico_1xb8-6e_digits.py',
    'mmseg': ROOT / 'configs/biformer/fpn_biformer-pico_1xb8-1800i_digits.py',
}


@pytest.fixture(scope='session')
def model_files(small_digits):
    """Return a function from mmdet, mmseg or mmpretrain to config and weights."""

    def write(host):
        config, path = CONFIGS[host], small_digits / f'{host}.pth'
        if not path.exists():
            torch.manual_seed(0)
            weights = build_model(read_config(str(config))).state_dict()
            torch.save(dict(state_dict=weights, meta={}), path)
        return config, path

    return write


@pytest.fixture
def run_script(run_host, small_digits):
    """Run a script of mmdet, mmseg or mmpretrain; return what it prints."""

    def run(host, tool, *args):
        done = run_host(host, tool, *args, cwd=small_digits)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def example():
    """Return a function to the first program of docs/tools.md with a word."""
    programs = re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs/tools.md').read_text(), re.DOTALL
    )
    return lambda word: next(text for text in programs if word in text)
