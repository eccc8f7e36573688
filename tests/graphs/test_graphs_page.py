"""The programs of docs/graphs.md."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAMS = re.findall(
    r'```python\n(.*?)```', (ROOT / 'docs' / 'graphs.md').read_text(), re.DOTALL
)


def first_call(program):
    return re.search(r'torch\.jit|Dim|vmap|quantize|peft|hook', program)[0]


@pytest.mark.filterwarnings('ignore')  # torch.jit and torch.ao are deprecated
@pytest.mark.parametrize('program', PROGRAMS, ids=first_call)
def test_a_program_of_the_page_runs(program, tmp_path, monkeypatch):
    if 'import peft' in program:
        pytest.importorskip('peft')
    monkeypatch.chdir(tmp_path)

    names = {}
    exec(program, names)

    for out in names.get('feature_maps') or []:
        assert out.isfinite().all()
    if 'per_sample' in names:
        assert len(names['per_sample']['stages.0.0.attn.qkv.weight']) == 2
    if 'seen' in names:
        assert names['seen']['block'].shape == (1, 128, 4, 4)
        assert len(names['names']) > 100
        assert isinstance(names['program'].graph_module, torch.fx.GraphModule)
