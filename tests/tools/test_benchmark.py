import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

# The smallest detectors: one layer each.
SMALL = [
    'detector',
    *('--sizes', '64x96', '96x64', '--repeats', '2'),
    *('--threads', '1', '--device', 'cpu', '--cfg-options'),
    *('model.num_queries=20', 'model.backbone.depth=18'),
    'model.neck.in_channels=[128,256,512]',
    *('model.encoder.num_layers=1', 'model.cascade=(0.6,)'),
    'model.decoder.num_layers=1',
]


@pytest.fixture(scope='module')
def done(tmp_path_factory, run_tool):
    folder = tmp_path_factory.mktemp('benchmark')
    files = ['--json', 'out/here.json', '--plot', 'out/here.png']
    command, *options = SMALL
    return folder, run_tool('benchmark.py', command, *files, *options, cwd=folder)


@pytest.fixture
def run_here(monkeypatch):
    """Run the command in this process; return its exit status or error."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(ROOT / 'tools' / 'benchmark.py'), run_name='__main__')
        return exit.value.code

    return run


def test_every_size_has_a_table(done):
    _, process = done

    lines = process.stdout.splitlines()
    for name in ('1x64x96', '1x96x64'):
        header, dino, focus = lines[lines.index(name) + 1 :][:3]
        assert header.split() == ['encoder', 'whole', 'model', 'peak', 'memory']
        assert dino.startswith('DINO ')
        assert focus.startswith('Focus-DETR 0.3 ')
    assert '1 thread, ' in process.stdout
    assert 'torch 2' in process.stdout


def test_progress_is_printed(done):
    _, process = done

    assert '1x64x96: round 2 of 2: DINO' in process.stderr.splitlines()
    assert 'profiler' not in process.stderr


def test_a_record_and_a_plot_are_written(done):
    folder, process = done
    content = json.loads((folder / 'out/here.json').read_text())

    assert 'benchmark.py detector --json' in content['command']
    assert {'title', 'what', 'machine', 'versions', 'commit', 'date'} <= set(content)
    assert content['machine'].endswith('1 thread')
    assert content['environment']['threads'] == 1
    row = content['figures']['1x96x64: Focus-DETR 0.3']
    assert set(row) >= {'encoder', 'encoder-ratio', 'peak memory'}
    assert list(content['results']) == ['1x64x96', '1x96x64']
    assert [x['name'] for x in content['results']['1x96x64']] == [
        'DINO',
        'Focus-DETR 0.3',
    ]
    assert Image.open(folder / 'out/here.png').size[0] > 500
    assert process.stdout.splitlines()[-2:] == ['out/here.json', 'out/here.png']


def test_segmentors_have_tables_of_training_and_prediction(tmp_path, run_tool):
    name = 'fpn_biformer-nano_1xb8-1600i_digits'
    config = ROOT / 'configs' / 'biformer' / f'{name}.py'
    sizes = ['--crop', '64x96', '--image', '64x128', '--batch-size', '2']
    options = [*sizes, '--repeats', '1', '--device', 'cpu', '--plot', 'plot.png']

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
    assert Image.open(tmp_path / 'plot.png').size[0] > 500


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nothing.py'], 'error: config: no such file: nothing.py'),
        (['--plot', 'x.txt'], "error: --plot must end with one of ('.png', "),
        (['--repeats', '0'], 'error: --repeats must be at least 1; got 0'),
        (['--threads', '0'], 'error: --threads must be at least 1; got 0'),
        (['--batch-size', '0'], 'error: --batch-size must be at least 1; got 0'),
        (['--keep', '0.9'], 'error: A keep ratio must be in (0, 0.6]'),
        (['--sizes', '64x64'], 'error: Images of 64x64 have 85 tokens'),
    ],
    ids=lambda value: '' if isinstance(value, str) else ' '.join(value),
)
def test_errors_are_one_line(arguments, message, run_here):
    status = run_here('detector', *arguments)

    assert isinstance(status, str)
    assert status.startswith(message)
    assert '\n' not in status


@pytest.mark.parametrize('size', ['800', '0x4', 'x', '4x-2'])
def test_an_invalid_size_raises_an_error(size, run_here, capsys):
    assert run_here('detector', '--sizes', size) == 2

    message = f'a size must be HEIGHTxWIDTH, for example 800x1333; got {size}'
    assert message in capsys.readouterr().err


def test_help_describes_the_comparison(run_here, capsys):
    assert run_here('detector', '--help') == 0

    text = ' '.join(capsys.readouterr().out.split())
    assert "Compare Focus-DETR with mmdet's DINO" in text


def test_attention_patterns_are_compared_over_sizes(tmp_path, run_tool):
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


def test_a_side_that_regions_do_not_divide_raises_an_error(run_here):
    status = run_here('ops', '--pixels', '50')

    assert status == 'error: A size must be a multiple of 32; got 50.'


def test_backbones_are_compared_with_the_reference(tmp_path, run_tool):
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
    shares = lines[lines.index(next(x for x in lines if 'matrix products' in x)) + 1 :]
    assert re.match(r'  reference \(0.0 GMACs\): forward \d+%, ', shares[0])
    assert re.match(r'  fast paths \(0.0 GMACs\): forward \d+%, ', shares[1])


def test_reference_training_and_timm_may_be_skipped(tmp_path, run_tool):
    done = run_tool(
        'benchmark.py',
        'backbone',
        ROOT / 'configs' / 'dat' / 'dat-nano_1xb32-9e_digits.py',
        *('--no-reference', '--no-training', '--no-timm'),
        *('--size', '48x48', '--repeats', '1'),
        cwd=tmp_path,
    )

    assert 'fast paths' in done.stdout
    for skipped in ('reference', 'backward', 'timm'):
        assert skipped not in done.stdout


def test_a_backbone_of_mmdet_raises_an_error(run_here):
    config = ROOT / 'configs' / 'focus_detr' / 'focus-detr_r50_8xb2-12e_coco.py'

    status = run_here('backbone', str(config))

    assert status == 'error: model.backbone must be one of mmsparse; got ResNet.'
