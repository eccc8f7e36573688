"""The commands that draw and measure what a model looks at."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmsparse.apis import build_model, read_config

CONFIGS = Path(__file__).parents[2] / 'configs'
CLASSIFIER = CONFIGS / 'shunted_transformer' / 'shunted-nano_1xb32-14e_digits.py'
SEGMENTOR = CONFIGS / 'dat' / 'fpn_dat-nano_1xb8-1600i_digits.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Checkpoints of random weights, and pictures."""
    folder = tmp_path_factory.mktemp('visualize')
    for name, config in (('classifier', CLASSIFIER), ('segmentor', SEGMENTOR)):
        torch.manual_seed(0)
        model = build_model(read_config(str(config)))
        torch.save(dict(state_dict=model.state_dict()), folder / f'{name}.pth')
    for name, size in (('wide', (150, 90)), ('small', (64, 64))):
        Image.effect_noise(size, 60).convert('RGB').save(folder / f'{name}.png')
    (folder / 'text.png').write_text('no picture')
    torch.save(dict(state_dict=dict(other=torch.zeros(1))), folder / 'other.pth')
    return folder


def test_a_classifier_is_drawn_with_a_page(folder, run_tool):
    arguments = [CLASSIFIER, 'classifier.pth', 'small.png', '--html', '--out', 'cls']

    done = run_tool('visualize.py', *arguments, cwd=folder)

    expected = ['cls/small_attention.png', 'cls/small_field.png', 'cls/small.html']
    assert done.stdout.splitlines() == expected
    assert all((folder / path).stat().st_size > 5000 for path in expected)


def test_a_segmentor_is_drawn_at_a_point(folder, run_tool):
    arguments = [SEGMENTOR, 'segmentor.pth', 'wide.png', '--out', 'seg']

    done = run_tool(
        'visualize.py', *arguments, '--point', '149', '89', cwd=folder
    ).stdout.splitlines()

    assert done == [f'seg/wide_{name}.png' for name in ('attention', 'keys', 'field')]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            [CLASSIFIER, 'classifier.pth', 'small.png', '--point', '64', '3'],
            'error: small.png: point must lie in the picture, which is 64 wide and 64 '
            'high; got x=64 and y=3.',
        ),
        (
            [CLASSIFIER, 'other.pth', 'small.png'],
            'error: checkpoint: other.pth does not fit the configuration; missing',
        ),
        (
            [CLASSIFIER, 'classifier.pth', 'text.png', 'small.png'],
            'error: not a readable picture: text.png',
        ),
        (
            ['plain.py', 'plain.pth', 'small.png'],
            'error: small.png: model must have a part to look at; ImageClassifier has '
            'none of: attention layers that tell where they look (BiLevelRouting',
        ),
        (
            [CLASSIFIER, 'classifier.pth', 'small.png', 'cls/small.png'],
            'error: no such file: cls/small.png',
        ),
    ],
    ids=['point', 'checkpoint', 'picture', 'model', 'file'],
)
def test_a_mistake_is_told_in_one_line(arguments, message, folder, run_tool):
    if arguments[0] == 'plain.py':
        (folder / 'plain.py').write_text(
            f"_base_ = '{CLASSIFIER}'\n"
            "model = dict(backbone=dict(_delete_=True, type='MobileNetV2',\n"
            '    widen_factor=0.25), head=dict(in_channels=1280))\n'
        )
        model = build_model(read_config(str(folder / 'plain.py')))
        torch.save(dict(state_dict=model.state_dict()), folder / 'plain.pth')

    done = run_tool('visualize.py', *arguments, cwd=folder, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert 'Traceback' not in done.stderr


def test_costs_and_distances_are_told_by_block(folder, run_tool):
    arguments = [CLASSIFIER, 'classifier.pth', 'small.png', 'wide.png', '--repeats', 1]

    done = run_tool('analyze.py', *arguments, '--json', 'found.json', cwd=folder)

    found = json.loads((folder / 'found.json').read_text())
    parts = {part['name']: part for part in found['chunked']}
    assert found['shape'] == [64, 64]
    stage = [f'backbone.stage 2.{x}' for x in ('downsampling', 'block 1', 'block 2')]
    stage.append('backbone.stage 2.norm')
    for count in ('parameters', 'macs', 'seconds'):
        values = [parts[name][count] for name in stage]
        whole = parts['backbone.stage 2'][count]
        if count == 'seconds':
            assert min(values) > 0
        else:
            assert sum(values) == whole
    assert parts['total']['seconds'] > parts['backbone']['seconds']
    assert list(found['distances'])[-1] == 'stage 4, block 1'
    assert len(found['distances']['stage 4, block 1']) == 8
    assert all(0 < x < 91 for x in found['distances']['stage 1, block 1'])
    assert done.stdout.splitlines()[1].split() == ['parameters', 'multiply-adds', 'ms']
    *_, last, written = done.stdout.splitlines()
    assert last.startswith('stage 4, block 1')
    assert written == 'found.json'


def test_no_repeats_are_refused(folder, run_tool):
    arguments = [CLASSIFIER, 'classifier.pth', 'small.png', '--repeats', '0']

    done = run_tool('analyze.py', *arguments, cwd=folder, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'error: repeats must be at least 1; got 0.'
