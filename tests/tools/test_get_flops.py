import json
from pathlib import Path

import pytest

from mmsparse.analysis.flops import measure
from mmsparse.apis import build_model, read_config

CONFIGS = Path(__file__).parents[2] / 'configs' / 'biformer'
# Measured on the official models: parameters with 1000 classes, 10**9 multiply-adds.
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
}


def test_a_classifier_is_counted_by_part_and_stage(tmp_path, run_tool):
    config = CONFIGS / 'biformer-tiny_8xb128-300e_in1k.py'

    done = run_tool('get_flops.py', config, cwd=tmp_path)

    lines = done.stdout.splitlines()
    start = lines.index(f'{config}, one picture of 224x224')
    header, *rows = lines[start + 1 :]
    assert header.split() == ['parameters', 'multiply-adds']
    names = [row[: row.index('  ', 4)].strip() for row in rows]
    assert names == [
        'backbone',
        *(f'stage {i}' for i in (1, 2, 3, 4)),
        'out_norms',
        'neck',
        'head',
        'total',
    ]
    assert rows[-1].split()[1] == '13,142,760'


def test_the_size_of_the_picture_can_be_given(tmp_path, run_tool):
    config = CONFIGS / 'fpn_biformer-nano_1xb8-1600i_digits.py'

    done = run_tool('get_flops.py', config, '--shape', '128', '64', cwd=tmp_path)

    total = measure(build_model(read_config(str(config))), (128, 64))[-1]
    assert done.stdout.split()[-1] == f'{total.macs:,}'


@pytest.fixture(scope='module')
def zoo(tmp_path_factory, run_tool):
    """What the command prints for each model."""
    done = run_tool('get_flops.py', '--zoo', cwd=tmp_path_factory.mktemp('zoo'))
    models = [json.loads(line) for line in done.stdout.splitlines()]
    return {model['arch']: model for model in models}


def test_every_published_classifier_is_in_the_zoo(zoo):
    assert zoo.keys() == OFFICIAL.keys()


@pytest.mark.parametrize('name', OFFICIAL)
def test_parameters_and_multiply_adds_are_those_of_the_official_models(zoo, name):
    parameters, billions = OFFICIAL[name]

    assert zoo[name]['params'] == parameters
    assert zoo[name]['macs'] / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nothing.py'], 'error: config: no such file: nothing.py'),
        ([CONFIGS.parent / '_base_' / 'mmsparse.py'], 'error: The configuration needs'),
        (
            [CONFIGS / 'biformer-tiny_8xb128-300e_in1k.py', '--shape', '0', '4'],
            'error: --shape must be two positive numbers; got 0 4',
        ),
    ],
    ids=['no config', 'no model', 'no size'],
)
def test_a_mistake_is_told_in_one_line(arguments, message, tmp_path, run_tool):
    done = run_tool('get_flops.py', *arguments, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert 'Traceback' not in done.stderr
