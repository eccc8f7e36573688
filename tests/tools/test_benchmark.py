import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

# The least that the command can be asked for: one layer each, a narrow transformer.
SMALL = [
    'detector',
    *('--sizes', '64x96', '96x64', '--width', '32', '--repeats', '2'),
    *('--threads', '1', '--device', 'cpu', '--cfg-options'),
    *('model.num_queries=20', 'model.backbone.depth=18'),
    'model.neck.in_channels=[128,256,512]',
    *('model.encoder.num_layers=1', 'model.cascade=(0.6,)'),
    'model.decoder.num_layers=1',
]


@pytest.fixture(scope='module')
def done(tmp_path_factory, run_tool):
    folder = tmp_path_factory.mktemp('benchmark')
    files = ['--json', 'made/here.json', '--plot', 'made/here.png']
    command, *options = SMALL
    return folder, run_tool('benchmark.py', command, *files, *options, cwd=folder)


def test_every_size_has_a_table(done):
    _, process = done

    lines = process.stdout.splitlines()
    for name in ('1x64x96', '1x96x64'):
        header, dino, focus = lines[lines.index(name) + 1 :][:3]
        assert header.split() == ['encoder', 'whole', 'model', 'peak', 'memory']
        assert dino.startswith('DINO ')
        assert focus.startswith('Focus-DETR 0.3 ')
    assert '1 threads, ' in process.stdout
    assert 'torch 2' in process.stdout


def test_progress_is_told(done):
    _, process = done

    assert '1x64x96: round 2 of 2: DINO' in process.stderr.splitlines()
    assert 'profiler' not in process.stderr


def test_figures_are_written_with_the_machine_and_drawn(done):
    folder, process = done
    content = json.loads((folder / 'made/here.json').read_text())

    assert content['command'].split()[1:3] == ['detector', '--json']
    assert content['environment']['threads'] == 1
    assert list(content['results']) == ['1x64x96', '1x96x64']
    assert [x['name'] for x in content['results']['1x96x64']] == [
        'DINO',
        'Focus-DETR 0.3',
    ]
    assert Image.open(folder / 'made/here.png').size[0] > 500
    assert process.stdout.splitlines()[-2:] == ['made/here.json', 'made/here.png']


def test_segmentors_have_a_table_for_each_of_training_and_prediction(
    tmp_path, run_tool
):
    name = 'fpn_biformer-nano_1xb8-1600i_digits'
    config = ROOT / 'configs' / 'biformer' / f'{name}.py'
    sizes = ['--crop', '64x96', '--picture', '64x128', '--batch-size', '2']
    options = [*sizes, '--repeats', '1', '--device', 'cpu', '--plot', 'drawn.png']

    process = run_tool('benchmark.py', 'segmentor', config, *options, cwd=tmp_path)

    lines = process.stdout.splitlines()
    header, plain, with_cp = lines[lines.index(f'{name}, training on 2x64x96') + 1 :][
        :3
    ]
    assert header.split() == ['time', 'peak', 'memory']
    assert plain.startswith('plain ')
    assert with_cp.startswith('with_cp ')
    (row,) = lines[lines.index(f'{name}, prediction of 1x64x128') + 2 :][:1]
    assert row.startswith('predict ')
    assert Image.open(tmp_path / 'drawn.png').size[0] > 500


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nothing.py'], 'error: config: no such file: nothing.py'),
        (['--plot', 'x.txt'], "error: --plot must end with one of ('.png', "),
        (['--repeats', '0'], 'error: repeats must be at least 1; got 0'),
        (['--threads', '0'], 'error: --threads must be at least 1; got 0'),
        (['--batch-size', '0'], 'error: --batch-size must be at least 1; got 0'),
        (['--keep', '0.9'], 'error: A keep ratio must be in (0, 0.6]'),
        (['--width', '40'], 'error: width must be a multiple of 32; got 40'),
        (['--sizes', '64x64'], 'error: Pictures of 64x64 have 85 tokens'),
    ],
    ids=lambda value: '' if isinstance(value, str) else ' '.join(value),
)
def test_a_mistake_is_told_in_one_line(arguments, message, tmp_path, run_tool):
    done = run_tool('benchmark.py', 'detector', *arguments, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('size', ['800', '0x4', 'x', '4x-2'])
def test_a_size_that_is_none_is_refused(size, tmp_path, run_tool):
    done = run_tool(
        'benchmark.py', 'detector', '--sizes', size, cwd=tmp_path, check=False
    )

    assert done.returncode == 2
    assert (
        f'a size must be HEIGHTxWIDTH, for example 800x1333; got {size}' in done.stderr
    )


def test_help_says_what_is_compared(tmp_path, run_tool):
    done = run_tool('benchmark.py', 'detector', '--help', cwd=tmp_path)

    assert "Compare Focus-DETR with mmdet's DINO" in ' '.join(done.stdout.split())


def test_patterns_are_compared_over_sizes(tmp_path, run_tool):
    done = run_tool(
        'benchmark.py',
        'ops',
        *('--pixels', '64', '96', '--repeats', '1', '--threads', '1'),
        *('--device', 'cpu', '--plot', 'scaling.png', '--limit', '0.0005'),
        cwd=tmp_path,
    )

    lines = done.stdout.splitlines()
    names = ('dense', 'routed', 'deformable', 'neighborhood', 'shunted')
    for size, fits in (('64x64', True), ('96x96', False)):
        rows = [x.partition('  ')[0] for x in lines[lines.index(size) + 2 :][:10]]
        fast = [x for x in rows if x.endswith(', fast')]
        assert fast == [f'{name}, fast' for name in names]
        assert ('dense, reference' in rows) == fits
    assert Image.open(tmp_path / 'scaling.png').size[0] > 1000


def test_a_side_that_no_regions_fit_is_told(tmp_path, run_tool):
    done = run_tool('benchmark.py', 'ops', '--pixels', '50', cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'error: A size must be a multiple of 32; got 50.'
    )


def test_backbones_are_compared_with_the_definition(tmp_path, run_tool):
    name = 'biformer-nano_1xb32-9e_digits'
    done = run_tool(
        'benchmark.py',
        'backbone',
        ROOT / 'configs' / 'biformer' / f'{name}.py',
        *('--size', '48x64', '--repeats', '1', '--threads', '1', '--device', 'cpu'),
        cwd=tmp_path,
    )

    lines = done.stdout.splitlines()
    header, reference, fast = lines[lines.index(f'{name}, 1x48x64') + 1 :][:3]
    assert header.split() == ['forward', 'forward', '+', 'backward', 'peak', 'memory']
    assert reference.startswith('reference ')
    assert fast.startswith('fast paths ')
    shares = lines[lines.index(next(x for x in lines if 'product of large' in x)) + 1 :]
    assert re.match(r'  reference \(0.0 G multiply-adds\): forward \d+%, ', shares[0])
    assert re.match(r'  fast paths \(0.0 G multiply-adds\): forward \d+%, ', shares[1])


def test_the_definition_and_training_may_be_left_out(tmp_path, run_tool):
    done = run_tool(
        'benchmark.py',
        'backbone',
        ROOT / 'configs' / 'dat' / 'dat-nano_1xb32-9e_digits.py',
        *('--no-reference', '--no-training', '--size', '48x48', '--repeats', '1'),
        cwd=tmp_path,
    )

    assert 'reference' not in done.stdout
    assert 'backward' not in done.stdout


def test_a_backbone_of_the_host_has_no_fast_paths(tmp_path, run_tool):
    config = ROOT / 'configs' / 'focus_detr' / 'focus-detr_r50_8xb2-12e_coco.py'
    done = run_tool('benchmark.py', 'backbone', config, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'error: model.backbone must be one of mmsparse; got ResNet.'
    )
