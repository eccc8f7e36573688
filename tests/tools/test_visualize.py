"""The command that draws and measures the attention of a model."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image
from visualize.models import Choice, parse_models, record

from mmsparse.apis import build_model, read_config
from mmsparse.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'
CLASSIFIER = CONFIGS / 'shunted_transformer' / 'shunted-nano_1xb32-14e_digits.py'
SEGMENTOR = CONFIGS / 'dat' / 'fpn_dat-nano_1xb8-1600i_digits.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Checkpoints of random weights, and images."""
    folder = tmp_path_factory.mktemp('visualize')
    for name, config in (('classifier', CLASSIFIER), ('segmentor', SEGMENTOR)):
        torch.manual_seed(0)
        model = build_model(read_config(str(config)))
        torch.save(dict(state_dict=model.state_dict()), folder / f'{name}.pth')
    for name, size in (('wide', (150, 90)), ('small', (64, 64))):
        Image.effect_noise(size, 60).convert('RGB').save(folder / f'{name}.png')
    (folder / 'text.png').write_text('no image')
    torch.save(dict(state_dict=dict(other=torch.zeros(1))), folder / 'other.pth')
    return folder


def test_a_classifier_is_drawn_with_a_page(folder, run_tool):
    arguments = [CLASSIFIER, 'classifier.pth', 'small.png', '--html', '--out', 'cls']

    done = run_tool('visualize.py', *arguments, cwd=folder)

    names = ('_attention.png', '_receptive_field.png', '.html')
    expected = [f'cls/small{name}' for name in names]
    assert done.stdout.splitlines() == expected
    assert all((folder / path).stat().st_size > 5000 for path in expected)


def test_a_segmentor_is_drawn_at_a_point(folder, run_tool):
    arguments = [SEGMENTOR, 'segmentor.pth', 'wide.png', '--out', 'seg']

    done = run_tool(
        'visualize.py', *arguments, '--point', '149', '89', cwd=folder
    ).stdout.splitlines()

    names = ('attention', 'sampled_keys', 'receptive_field')
    assert done == [f'seg/wide_{name}.png' for name in names]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            [CLASSIFIER, 'classifier.pth', 'small.png', '--point', '64', '3'],
            'error: small.png: point must be inside the image of width 64 and height '
            '64; got x=64, y=3.',
        ),
        (
            [CLASSIFIER, 'other.pth', 'small.png'],
            'error: checkpoint: other.pth does not fit the configuration; missing',
        ),
        (
            [CLASSIFIER, 'classifier.pth', 'text.png', 'small.png'],
            'error: not a readable image: text.png',
        ),
        (
            ['plain.py', 'plain.pth', 'small.png'],
            'error: small.png: model must have layers to record; ImageClassifier has '
            'none of: attention layers with attention_maps() (AgentAttention',
        ),
        (
            [CLASSIFIER, 'classifier.pth', 'small.png', 'cls/small.png'],
            'error: no such file: cls/small.png',
        ),
    ],
    ids=['point', 'checkpoint', 'image', 'model', 'file'],
)
def test_a_mistake_is_one_line(arguments, message, folder, run_tool):
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


def test_attention_statistics_are_printed_and_written(folder, run_tool):
    classifier = [CLASSIFIER, 'classifier.pth', 'small.png', 'wide.png']

    done = run_tool('visualize.py', *classifier, '--stats', '--out', 'c', cwd=folder)

    found = json.loads((folder / 'c' / 'statistics.json').read_text())
    assert found['num_images'] == 2
    distances = found['attention_distance']
    assert list(distances)[-1] == 'stage 4, block 1'
    assert len(distances['stage 4, block 1']) == 8
    assert all(0 < x < 91 for x in distances['stage 1, block 1'])
    *_, last, written = done.stdout.splitlines()
    assert last.startswith('stage 4, block 1')
    assert written == 'c/statistics.json'


def test_the_offset_spread_of_a_segmentor_is_printed(folder, run_tool):
    segmentor = [SEGMENTOR, 'segmentor.pth', 'wide.png']

    done = run_tool('visualize.py', *segmentor, '--stats', '--out', 's', cwd=folder)

    found = json.loads((folder / 's' / 'statistics.json').read_text())
    assert found['offset_spread/stage_4'] > 0
    assert 'offset_spread/stage_4' in done.stdout


def test_models_are_compared(folder, run_tool):
    arguments = [SEGMENTOR, 'segmentor.pth', 'timm:vit_tiny_patch16_224', 'wide.png']

    done = run_tool(
        'visualize.py',
        '--compare',
        *arguments,
        '--format',
        'svg',
        '--out',
        'both',
        cwd=folder,
    )

    assert done.stdout.splitlines() == ['both/wide_compare_attention.svg']
    text = (folder / 'both/wide_compare_attention.svg').read_text()
    assert 'fpn dat-nano' in text and 'random weights' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['a.py', 'a.pth', 'x.png'], 'got 1 model, at least 2 are needed'),
        (['a.py', 'a.pth', 'b.py'], 'got no image, but b.py as the last argument'),
        (['a.py', 'x.png', 'b.py', 'y.png'], 'got x.png without a config before it'),
        (['a.py', 'a.pth', 'b.pth', 'y.png'], 'got b.pth without a config before it'),
    ],
    ids=['one', 'image', 'images', 'checkpoints'],
)
def test_wrong_comparisons_raise(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse_models(arguments)


def test_models_are_named_by_what_is_different():
    arguments = [
        'c/dat_8xb2_x.py',
        'a.pth',
        'c/dat_8xb2_x.py',
        'b.pth',
        'timm:vit',
        'i.png',
    ]

    choices, image = parse_models(arguments)

    assert image == 'i.png'
    assert [x.title for x in choices] == ['dat\na', 'dat\nb', 'vit\nrandom weights']


def test_a_model_without_attention_is_named(folder):
    choice = Choice('timm:resnet10t')

    message = 'timm:resnet10t: model must have layers to record; ResNet has none of'
    with pytest.raises(UsageError, match=message):
        record(choice, str(folder / 'small.png'), Namespace(device='cpu'))
