import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from mmsparse.checkpoint import write_checkpoint
from mmsparse.hosts import build_model, read_config

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs').glob('*.md'))
FILES = r'(?:\bprojects/\w+/)?\b(?:tools|configs)/[\w/.-]+\.py\b'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r'\]\(([^)#]+)', page.read_text())

    assert links
    for link in links:
        assert '://' in link or (page.parent / link).exists(), link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_commands_and_configs_exist(page):
    for name in re.findall(FILES, page.read_text()):
        assert (ROOT / name).is_file(), name


class MyBackbone(nn.Module):
    def __init__(self, out_indices):
        super().__init__()


def test_the_example_with_your_own_backbone_builds(tmp_path):
    text = (ROOT / 'docs' / 'focus_detr.md').read_text()
    (example,) = re.findall(r'```python\n(_base_.*?)```', text, re.DOTALL)
    path = tmp_path / 'mine.py'
    path.write_text(example.replace("'configs/", f"'{ROOT}/configs/"))
    MODELS.register_module(module=MyBackbone, force=True)

    detector = build_model(read_config(str(path)))

    assert type(detector).__name__ == 'FocusDETR'
    assert [conv.conv.in_channels for conv in detector.neck.convs] == [96, 192, 384]


def test_every_option_of_focus_detr_has_a_row():
    text = (ROOT / 'docs' / 'focus_detr.md').read_text()
    rows = re.findall(r'^\| `(\w+)` \|.*\(\.\./(configs/\S+\.py)\)', text, re.MULTILINE)

    changed = {}
    for name, config in rows:
        model = read_config(str(ROOT / config)).model
        changed[name] = {**model.bbox_head.get('loss_foreground', {}), **model}[name]
    assert len(changed) == 10
    assert changed['cascade'] == (0.6,) * 6
    assert changed['norm'] == 'batch'


def test_the_example_with_a_backbone_prints_what_the_page_says(
    tmp_path, monkeypatch, capsys
):
    text = (ROOT / 'docs' / 'backbones.md').read_text()
    example, loading = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (printed,) = re.findall(r'```\n(\[.*?)```', text, re.DOTALL)
    monkeypatch.chdir(tmp_path)

    names = {}
    exec(example, names)

    assert capsys.readouterr().out == printed
    weights = names['backbone'].state_dict()
    write_checkpoint('dat-pp-tiny.safetensors', weights, meta={})
    exec(loading, names)
    for key, tensor in names['backbone'].state_dict().items():
        if not key.startswith('out_norms'):
            assert torch.equal(tensor, weights[key])
