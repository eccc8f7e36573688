import json
from pathlib import Path

import pytest

from mmsparse.analysis.flops import measure
from mmsparse.apis import build_model, read_config

CONFIGS = Path(__file__).parents[2] / 'configs' / 'biformer'
# Measured on the official models with 1000 classes: parameters and GMACs.
OFFICIAL = {
    'biformer-tiny': (13_142_760, 2.228),
    'biformer-small': (25_536_232, 4.487),
    'biformer-base': (56_804_968, 9.795),
    'biformer-stl': (28_372_552, 4.590),
    'biformer-stl-nchw': (28_372_552, 4.593),
    'dat-tiny': (28_319_138, 4.57),
    'dat-small': (49_700_402, 8.98),
    'dat-base': (87_881_632, 15.75),
    'dat-base-384': (88_178_272, 49.66),
    'dat-pp-tiny': (23_962_876, 4.27),
    'dat-pp-small': (53_127_366, 9.39),
    'dat-pp-base': (93_690_640, 16.51),
    'dat-pp-base-384': (93_690_640, 49.60),
    'shunted-tiny': (11_553_576, 2.146),
    'shunted-small': (22_401_256, 4.993),
    'shunted-base': (39_614_376, 8.149),
    'staged-tiny': (28_288_354, 4.5),  # of Swin-T, as published
}


def test_a_classifier_is_counted_by_part_and_stage(tmp_path, run_tool):
    config = CONFIGS / 'biformer-tiny_8xb128-300e_in1k.py'

    done = run_tool('get_flops.py', config, cwd=tmp_path)

    lines = done.stdout.splitlines()
    start = lines.index(f'{config}, one image of 224x224 pixels')
    header, *rows = lines[start + 1 :]
    assert header.split() == ['params', 'MACs', 'FLOPs']
    names = [row[: row.index('  ', 4)].strip() for row in rows]
    assert names == [
        'backbone',
        *(f'stage {i}' for i in (1, 2, 3, 4)),
        'out_norms',
        'head',
        'total',
    ]
    assert rows[-1].split()[1:] == ['13.1', 'M', '2.22', 'G', '4.43', 'G']


def test_exact_counts_and_times_of_blocks_are_written(tmp_path, run_tool):
    config = CONFIGS / 'fpn_biformer-nano_1xb8-1600i_digits.py'
    options = ['--shape', '128', '64', '--blocks', '--time', '--repeats', '1']

    done = run_tool(
        'get_flops.py', config, *options, '--json', 'a/b.json', cwd=tmp_path
    )

    assert done.stdout.splitlines()[-1] == 'a/b.json'
    found = json.loads((tmp_path / 'a' / 'b.json').read_text())
    expected = measure(build_model(read_config(str(config))), (128, 64), blocks=True)
    assert [(x['name'], x['params'], x['macs'], x['flops']) for x in found] == [
        (part.name, part.parameters, part.macs, part.flops) for part in expected
    ]
    parts = {part['name']: part for part in found}
    stage = [f'backbone.stage 2.{x}' for x in ('downsampling', 'block 1', 'block 2')]
    for count in ('params', 'macs'):
        values = [parts[name][count] for name in stage]
        assert sum(values) == parts['backbone.stage 2'][count]
    assert min(parts[name]['seconds'] for name in stage) > 0
    assert parts['total']['seconds'] > parts['backbone']['seconds']
    assert parts['decode_head']['seconds'] > 0


def test_a_part_that_does_not_run_is_named_in_its_row_and_in_the_total(
    tmp_path, run_tool
):
    config = CONFIGS / 'upernet_biformer-nano_1xb8-1600i_digits.py'

    done = run_tool('get_flops.py', config, '--json', 'a.json', cwd=tmp_path)

    lines = [line.split() for line in done.stdout.splitlines()]
    (row,) = [x for x in lines if x[:1] == ['auxiliary_head']]
    assert row[-4:] == ['not', 'run', 'not', 'run']
    assert lines[-3][:3] == ['total', 'without', 'auxiliary_head']
    assert ' '.join(lines[-2]) == 'not run: auxiliary_head (used in training only)'
    total = json.loads((tmp_path / 'a.json').read_text())[-1]
    assert (total['name'], total['without']) == ('total', ['auxiliary_head'])


@pytest.fixture(scope='module')
def zoo(tmp_path_factory, run_tool):
    """The published models that the command writes, by name."""
    folder = tmp_path_factory.mktemp('zoo')
    run_tool('get_flops.py', '--zoo', '--json', 'zoo.json', cwd=folder)
    return {
        model['name']: model for model in json.loads((folder / 'zoo.json').read_text())
    }


def test_every_published_classifier_is_in_the_zoo(zoo):
    assert zoo.keys() == OFFICIAL.keys()


@pytest.mark.parametrize('name', OFFICIAL)
def test_parameters_and_macs_are_those_of_the_official_models(zoo, name):
    parameters, gmacs = OFFICIAL[name]

    assert zoo[name]['params'] == parameters
    assert zoo[name]['macs'] / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nothing.py'], 'error: config: no such file: nothing.py'),
        ([CONFIGS.parent / '_base_' / 'mmsparse.py'], 'error: The config needs'),
        (
            [CONFIGS / 'biformer-tiny_8xb128-300e_in1k.py', '--shape', '0', '4'],
            'error: --shape must be two positive numbers; got 0 4',
        ),
        (
            [CONFIGS / 'biformer-nano_1xb32-9e_digits.py', '--time', '--repeats', '0'],
            'error: repeats must be at least 1; got 0.',
        ),
    ],
    ids=['no config', 'no model', 'no size', 'no repeats'],
)
def test_a_mistake_is_one_line(arguments, message, tmp_path, run_tool):
    done = run_tool('get_flops.py', *arguments, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert 'Traceback' not in done.stderr
