"""The job for a GPU, run on the CPU at the smallest sizes."""

import csv
import json
import os
import runpy
import subprocess
import sys
import time
from itertools import chain, cycle, repeat
from pathlib import Path

import pytest
import torch
from benchmark import events, shapes
from benchmark.events import time_in_turns, time_limit
from benchmark.gpu import SECTIONS, job
from benchmark.gpu.job import Files, Job, Section, Step
from benchmark.gpu.results import TIMM_COLUMNS, decisions, read_results

from mmsparse.ops import routed
from mmsparse.ops._tuning import (
    FOLDER_VARIABLE,
    device_name,
    fastest_backend,
    tuning_file,
)
from mmsparse.ops.triton import runs_on

TOOL = Path(__file__).parents[3] / 'tools' / 'benchmark.py'
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def run_gpu():
    """Run the command with --smoke in this process; return its exit status."""

    def run(folder, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sys,
                'argv',
                ['benchmark.py', 'gpu', '--smoke', '--out', str(folder), *arguments],
            )
            with pytest.raises(SystemExit) as exit:
                runpy.run_path(str(TOOL), run_name='__main__')
            return exit.value.code

    return run


@pytest.fixture(scope='module')
def smoke(tmp_path_factory, run_gpu):
    folder = tmp_path_factory.mktemp('gpu')
    assert run_gpu(folder) in (0, None)
    return folder, json.loads((folder / 'gpu.json').read_text())


def test_every_section_has_results(smoke):
    _, content = smoke

    tables = content['results']
    # The op of the encoder may be missing; older versions of torch compile less.
    for name in {*SECTIONS} - {*tables}:
        assert name in ('encoder', 'compiled')
        assert content['errors'][name]
    assert content['skipped'] == {}
    numbers = [
        value
        for rows in tables.values()
        for row in rows
        for value in row.values()
        if isinstance(value, float)
    ]
    assert all(0 <= value < float('inf') for value in numbers)


def test_every_op_and_backend_is_checked_and_right(smoke):
    _, content = smoke

    rows = content['results']['correctness']
    verdicts = {(x['op'], x['backend'], x['dtype']): x['verdict'] for x in rows}
    for backend in routed.BACKENDS:
        can = backend != 'triton' or runs_on(torch.zeros(1))
        expected = 'right' if can else 'cannot'
        assert verdicts['routed_attention', backend, 'float32'] == expected
    assert {*verdicts.values()} <= {'right', 'cannot'}
    assert {op for op, *_ in verdicts} >= {
        *('routed_attention', 'deformable_attention', 'neighborhood_attention'),
        *('window_attention', 'shunted_attention'),
    }
    assert max(x['gradients'] for x in rows if 'gradients' in x) > 0


def test_ops_are_timed_and_written_as_a_tuning_file(smoke):
    folder, content = smoke

    timed = [x for x in content['results']['ops'] if x['op'] == 'routed_attention']
    assert {x['backend'] for x in timed} == {'reference', 'gathered', 'masked'}
    assert all(x['forward, ms'] > 0 < x['forward + backward, ms'] for x in timed)
    tuning = json.loads((folder / tuning_file(device_name(CPU))).read_text())
    first, second = tuning['ops']['routed_attention']
    assert (first['training'], second['training']) == (False, True)
    assert first['sizes'].keys() == {'regions', 'tokens', 'keys', 'head_dim'}
    assert first['milliseconds'] == {x['backend']: x['forward, ms'] for x in timed}
    assert 'window_attention' not in tuning['ops']


def test_the_record_has_the_fields_of_docs_measurements(smoke):
    _, content = smoke

    fields = {'title', 'what', 'machine', 'versions', 'command', 'commit', 'date'}
    assert fields <= content.keys()
    figure = content['figures']['ceilings: copy']['GB/s']
    assert float(figure.replace(',', '')) > 0


def test_models_are_written_in_the_columns_of_timm(smoke):
    folder, content = smoke

    model = content['results']['models'][0]
    assert 'failed' not in model, model
    assert model['peak, MiB'] > 1
    with (folder / 'gpu.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    row = rows[0]
    assert list(row) == [*TIMM_COLUMNS]
    assert row['model'] == 'biformer-pico'
    assert row['infer_batch_size'] == row['train_batch_size'] == '2'
    assert row['infer_img_size'] == '64'
    # Both columns are rounded.
    for kind in ('infer', 'train'):
        seconds = float(row[f'{kind}_step_time']) / 1e3
        assert float(row[f'{kind}_samples_per_sec']) * seconds == pytest.approx(2, 1e-2)
    assert float(row['param_count']) == pytest.approx(1.558, abs=1e-3)
    assert 0 < float(row['infer_gmacs']) < float(row['infer_macts']) < 1


def test_the_page_has_tables_and_the_fastest_backends(smoke):
    folder, _ = smoke

    page = (folder / 'gpu.md').read_text()
    titles = [line[3:] for line in page.splitlines() if line.startswith('## ')]
    assert titles == ['decide', *SECTIONS]
    assert 'Every backend that ran computes what the reference does.' in page
    decided, checked = (page[page.index(f'## {x}') :] for x in ('decide', 'correct'))
    line = next(x for x in decided.splitlines() if 'routed_attention' in x)
    assert set(line.split(' | ')) & {'reference', 'gathered', 'masked'}
    assert '| gathered | right |' in checked


def test_nothing_is_measured_without_a_budget(tmp_path, run_gpu):
    assert run_gpu(tmp_path, '--budget', '0') in (0, None)

    content = json.loads((tmp_path / 'gpu.json').read_text())
    assert content['results'] == {}
    assert content['skipped']['ceilings'] == ['bfloat16', 'tf32', 'float32', 'copy']
    page = (tmp_path / 'gpu.md').read_text()
    assert 'No time was left for bfloat16, tf32, float32, copy.' in page
    assert 'No result was checked.' in page
    header = (tmp_path / 'gpu.csv').read_text().splitlines()
    assert header == [','.join(TIMM_COLUMNS)]


def test_a_wrong_backend_is_reported_and_not_proposed(tmp_path, run_gpu, monkeypatch):
    right = routed._gathered

    def wrong(q, k, *args):
        return right(q, 1.01 * k, *args)

    monkeypatch.setattr(routed, '_gathered', wrong)
    (case,) = (x for x in shapes.smallest_cases() if x.op == 'routed_attention')
    monkeypatch.setattr(shapes, 'smallest_cases', lambda: [case])

    assert run_gpu(tmp_path, '--only', 'correctness', 'ops') == 1

    content = json.loads((tmp_path / 'gpu.json').read_text())
    rows = content['results']['correctness']
    found = [x for x in rows if x['verdict'] == 'WRONG']
    assert ('routed_attention', 'gathered') in {(x['op'], x['backend']) for x in found}
    page = (tmp_path / 'gpu.md').read_text()
    assert 'Wrong or failed: routed_attention by ' in page
    tuning = json.loads((tmp_path / tuning_file(device_name(CPU))).read_text())
    for entry in tuning['ops']['routed_attention']:
        assert 'gathered' not in entry['milliseconds']


# Runs a command without the packages that a machine with a GPU may lack.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
lacked = {'mmengine', 'mmcv', 'mmdet', 'timm'}
PathFinder.find_spec = lambda name, *args: (
    None if name.partition('.')[0] in lacked else find_spec(name, *args)
)
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition('/')[0])
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_torch_is_enough_and_missing_models_are_reported(tmp_path):
    options = ['gpu', '--smoke', '--only', 'ceilings', 'models', '--out', tmp_path]

    subprocess.run(
        [sys.executable, '-c', WITHOUT, TOOL, *options],
        env=os.environ | dict(PYTHONPATH=str(TOOL.parents[1])),
        check=True,
    )

    content = json.loads((tmp_path / 'gpu.json').read_text())
    assert len(content['results']['ceilings']) == 4
    assert content['errors']['models'] == {
        'biformer-pico': "ModuleNotFoundError: No module named 'mmengine'",
        'convnext_atto': "ModuleNotFoundError: No module named 'timm'",
    }


def test_a_gpu_is_needed_without_smoke(run_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'gpu', '--out', str(tmp_path)])

    with pytest.raises(SystemExit, match='there is no GPU; --smoke tries the job'):
        runpy.run_path(str(TOOL), run_name='__main__')


@pytest.fixture
def run_job(tmp_path):
    """Run a job of sections, each from the names and functions of its steps."""

    def run(sections, budget=100.0, resume=False, reserve=0.0):
        files = Files(*(tmp_path / f'a.{suffix}' for suffix in ('json', 'csv', 'md')))
        built = [
            Section(name, '', lambda _, steps=steps: iter(steps), reserve)
            for name, steps in sections.items()
        ]
        made = Job(CPU, True, budget, files, built, resume)
        made.run()
        return read_results(files.json), files.page.read_text()

    return run


def rows(count):
    return lambda: ({'what': f'row {i}', 'value': i} for i in range(count))


def fail():
    yield {'what': 'before', 'value': 1}
    raise RuntimeError('broken\nmore')


def test_a_step_that_fails_is_recorded_and_the_job_goes_on(run_job):
    found, page = run_job(
        {
            'one': [Step('bad', fail), Step('good', rows(1))],
            'two': [Step('last', rows(2))],
        }
    )

    assert [x['what'] for x in found.tables['one']] == ['before', 'row 0']
    assert len(found.tables['two']) == 2
    assert found.errors == {'one': {'bad': 'RuntimeError: broken'}}
    assert not found.failed
    assert '- failed: bad: RuntimeError: broken' in page


def test_a_check_that_fails_is_a_failure(run_job):
    found, page = run_job({'correctness': [Step('op, triton', lambda: 1 / 0)]})

    assert found.failed
    assert 'Wrong or failed: op, triton.' in page


def test_reserves_are_left_to_later_sections(run_job):
    sections = {name: [Step(name, rows(1))] for name in ('one', 'two')}

    # Half of the budget that reserves are for, so half of a reserve: 110 seconds.
    found, _ = run_job(sections, budget=job.BUDGET / 2, reserve=500)

    assert found.skipped == {'one': ['one']}
    assert list(found.tables) == ['two']


def test_a_job_that_was_cut_off_is_resumed(run_job):
    run_job({'one': [Step('a', rows(1))]})

    found, _ = run_job({'one': [Step('a', fail), Step('b', rows(2))]}, resume=True)

    assert len(found.tables['one']) == 3
    assert found.errors == {}
    assert found.done == ['one: a', 'one: b']
    again, _ = run_job({'one': [Step('a', rows(1))]})
    assert len(again.tables['one']) == 1


def test_a_new_process_continues_when_the_device_is_broken(run_job, monkeypatch):
    commands = []
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', 'gpu', '--budget', '100'])
    monkeypatch.setattr(job.os, 'execv', lambda _, command: commands.append(command))

    def break_device(device):
        raise RuntimeError('an illegal memory access was encountered')

    monkeypatch.setattr(job, 'synchronize', break_device)
    bad, same, other = (
        Step(name, run, backend=('op', backend))
        for name, run, backend in (
            ('bad', fail, 'triton'),
            ('same', rows(1), 'triton'),
            ('other', rows(1), 'gathered'),
        )
    )
    run_job({'one': [bad]})

    ((python, tool, *arguments),) = commands
    assert (python, tool) == (sys.executable, str(TOOL))
    assert arguments[:-1] == ['gpu', '--budget', '100', '--resume', '--budget']
    assert 0 < float(arguments[-1]) <= 100
    monkeypatch.undo()
    found, _ = run_job({'one': [bad, same, other]}, resume=True)
    assert found.done == ['one: bad', 'one: other']


def test_models_run_with_the_fastest_backends(run_job, monkeypatch):
    sizes = dict(regions=1, tokens=1, keys=1, head_dim=1)
    monkeypatch.setenv(FOLDER_VARIABLE, '/nowhere')

    def times():
        for backend, milliseconds in (('gathered', 2.0), ('masked', 1.0)):
            yield dict(
                op='routed_attention',
                shape='',
                dtype='float32',
                backend=backend,
                sizes=sizes,
            ) | dict.fromkeys((events.FORWARD, events.TRAINING), milliseconds)

    def ask():
        known = ('gathered', 'masked')
        x = torch.zeros(1)
        yield {'what': str(fastest_backend('routed_attention', x, known, **sizes))}

    found, _ = run_job(
        {
            'first': [Step('a', ask)],
            'ops': [Step('b', times)],
            'models': [Step('c', ask)],
        }
    )

    assert found.tables['first'] == [{'what': 'None'}]
    assert found.tables['models'] == [{'what': 'masked'}]
    assert os.environ[FOLDER_VARIABLE] == '/nowhere'


def sleep():
    yield {'what': 'before', 'value': 1}
    time.sleep(30)


def test_a_step_ends_at_its_time_limit(run_job):
    found, _ = run_job({'one': [Step('slow', sleep, 0.05), Step('next', rows(1))]})

    assert found.errors == {'one': {'slow': 'TimeoutError: more than 0 s'}}
    assert len(found.tables['one']) == 2


def test_code_that_handles_exceptions_is_interrupted_again(monkeypatch):
    monkeypatch.setattr(events, 'REPEAT_SECONDS', 0.01)

    with pytest.raises(TimeoutError, match='more than 0 s'), time_limit(0.01):
        try:
            time.sleep(30)
        except TimeoutError:
            time.sleep(30)


@pytest.mark.parametrize(
    ('seconds', 'rounds'),
    [(2, 3), (9, 5), (0.9, 2), (0, 1), (1e6, events.MAX_ROUNDS)],
    ids=['least', 'as-many-as-fit', 'slow', 'one', 'most'],
)
def test_runs_take_turns(monkeypatch, seconds, rounds):
    now, calls = 0.0, []
    monkeypatch.setattr(events, 'perf_counter', lambda: now)

    def run(name, durations):
        def call():
            nonlocal now
            calls.append(name)
            now += next(durations)

        return call

    runs = {
        'a': run('a', chain([99], cycle([3.0, 4.0]))),  # the first is the warm-up
        'bad': lambda: 1 / 0,
        'b': run('b', chain([99], repeat(0.5))),
    }
    found = time_in_turns(runs, CPU, seconds)

    assert calls == ['a', 'b'] * (1 + rounds)
    assert list(found) == ['a', 'bad', 'b']
    assert found['b'] == 500
    assert 3000 <= found['a'] <= 4000
    assert isinstance(found['bad'], ZeroDivisionError)


def test_the_fastest_backend_of_every_pass_is_listed():
    common = dict(op='op', shape='shape', dtype='float32')
    times = ((1.0, 9.0, 'a'), (2.0, 3.0, 'b'))
    found = decisions(
        [
            common
            | {'backend': x, 'forward, ms': forward, 'forward + backward, ms': training}
            for forward, training, x in times
        ]
        + [common | {'backend': 'c', 'error': 'none'}]
    )

    assert found == [
        common
        | {
            'forward': 'a',
            'forward, ms': 1.0,
            'forward + backward': 'b',
            'forward + backward, ms': 3.0,
        }
    ]
