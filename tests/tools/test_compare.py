"""A comparison of two small models on a few images, for two iterations each."""

import json
import sys
from pathlib import Path

from _cli import run as run_command

import compare
import numpy as np
import pytest
import torch
from comparison import pilot, report
from comparison import run as comparison_run
from comparison.comparison import COMPARISONS, ROOT, read_comparison, training_config
from comparison.protocol import Protocol
from comparison.training import percent
from filelock import FileLock
from mmengine.config import Config
from PIL import Image
from public_data.cifar10 import CLASSES
from this_process import in_this_process
from training.costs import Cost
from training.curve import Curve, read_curve
from training.metrics import METRICS

from mmsparse.checkpoint.state_dict import read_weights

COMPARISON = """\
title: Two colors
iterations: 2
minutes: 1
models:
  own: configs/biformer/biformer-nano_1xb64-3e_cifar10.py
  other: configs/baselines/resnet18-nano_1xb64-3e_cifar10.py
"""
NAMES = sorted(path.stem for path in COMPARISONS.glob('*.yml'))
RECIPE = ('optim_wrapper', 'param_scheduler', 'train_dataloader', 'test_dataloader')
DETECTORS = 'bccd_detr'  # with one backbone; in the others, backbones differ
SHARED = ('backbone', 'data_preprocessor', 'num_queries', 'num_feature_levels')


@pytest.fixture(scope='session')
def tiny_cifar10(tmp_path_factory):
    """A working directory with one image of each class in data/cifar10."""
    folder = tmp_path_factory.mktemp('cifar10')
    for split in ('train', 'test'):
        for value, name in enumerate(CLASSES):
            path = folder / 'data' / 'cifar10' / split / name / '0.jpg'
            path.parent.mkdir(parents=True)
            Image.new('RGB', (32, 32), (20 * value,) * 3).save(path)
    return folder


@pytest.fixture
def run(tiny_cifar10, tmp_path, monkeypatch, capsys):
    """Run the command next to the images, in this process; return its output."""
    monkeypatch.chdir(tiny_cifar10)
    for module in (pilot, comparison_run):
        monkeypatch.setattr(module, 'in_new_process', in_this_process)
    monkeypatch.setattr(pilot, 'ROUNDS', 1)
    (tmp_path / 'colors.yml').write_text(COMPARISON)

    def run(*arguments, data_set=tmp_path / 'colors.yml'):
        command = ['compare.py', data_set, '--out', tmp_path / 'out', *arguments]
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        with pytest.raises(SystemExit) as end:
            run_command(compare.main)
        if end.value.code:
            raise end.value
        return capsys.readouterr().out

    return run


def test_rows_are_trained_once_and_share_one_report(run, tmp_path):
    out = tmp_path / 'out' / 'iterations-2'

    first = run('--rows', 'other')

    record = json.loads((out / 'results.json').read_text())
    (row,) = record['rows']
    assert (row['name'], row['iterations'], [*row['results']]) == ('other', 2, ['0'])
    assert (out / 'table.md').read_text() in first

    second = run()

    record = json.loads((out / 'results.json').read_text())
    own, other = record['rows']
    assert 'colors other, seed 0: finished' in second
    assert other == row
    assert own['macs'] > other['macs'] > 1e7
    assert record['figures']['own']['params (M)'] == '1.52'
    assert record['configs']['own'].endswith('biformer-nano_1xb64-3e_cifar10.py')
    assert 0 <= own['results']['0']['values']['accuracy'] <= 100
    assert [point['iteration'] for point in own['curves'][0]] == [1, 2]
    assert Image.open(out / 'plot.png').width > 1000

    result = out / 'own' / 'seed-0' / 'result.json'
    before, checkpoint = json.loads(result.read_text()), out / 'own/seed-0/iter_2.pth'
    result.unlink()
    written = checkpoint.stat().st_mtime_ns
    run('--rows', 'own')

    assert json.loads(result.read_text())['values'] == before['values']
    assert checkpoint.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ('source', 'seed', 'name'),
    [
        ('.', 0, 'out-iterations-1'),
        ('own/seed-0/iter_1.pth', 5, 'iterations-1-own-seed-0-iter_1'),
    ],
    ids=['folder', 'checkpoint'],
)
def test_backbones_start_from_another_training(run, tmp_path, source, seed, name):
    out = tmp_path / 'out'
    costs = dict.fromkeys(('own', 'other'), vars(Cost(1, 1.0, 1, 1)))
    out.mkdir()
    (out / 'pilot.json').write_text(json.dumps(costs))
    first, second = out / 'iterations-1', out / f'iterations-2-from-{name}'
    start, path = first / source, first / 'own' / 'seed-0' / 'iter_1.pth'

    with pytest.raises(SystemExit, match='must be a checkpoint, or the folder of a c'):
        run('--rows', 'own', '--pretrained', start)
    run('--rows', 'own', '--iterations', 1)
    with pytest.raises(SystemExit, match='no finished training of other with seed 0;'):
        run('--rows', 'other', '--pretrained', first)
    weights = {name: x + 3 for name, x in read_weights(path).items()}
    weights['backbone.stages.0.0.extra'] = weights.pop('backbone.out_norms.batch3.bias')
    torch.save(weights, path)
    run('--rows', 'own', '--seeds', seed, '--pretrained', start)

    trained = read_weights(second / 'own' / f'seed-{seed}' / 'iter_2.pth')
    assert trained['backbone.out_norms.batch3.weight'].mean() > 3.9
    assert trained['backbone.out_norms.batch3.bias'].mean() < 0.1  # not in the file
    assert trained['head.fc.weight'].mean() < 0.1
    assert f'from backbones of {start}' in (second / 'results.json').read_text()


def test_a_row_of_another_process_is_left_to_it(run, tmp_path):
    costs = dict.fromkeys(('own', 'other'), vars(Cost(1, 1.0, 1, 1)))
    folder = tmp_path / 'out' / 'iterations-2' / 'own' / 'seed-7'
    folder.mkdir(parents=True)
    (tmp_path / 'out' / 'pilot.json').write_text(json.dumps(costs))

    with FileLock(folder / 'lock'):
        printed = run('--rows', 'own', '--seeds', 7)

    assert 'colors own, seed 7: another process trains it' in printed
    assert not (folder / 'result.json').exists()


def test_settings_other_than_those_of_the_folder_are_an_error(run, tmp_path):
    costs = dict.fromkeys(('own', 'other'), vars(Cost(1, 1.0, 1, 1)))
    folder = tmp_path / 'out' / 'iterations-2' / 'own' / 'seed-0'
    folder.mkdir(parents=True)
    (folder / 'config.py').write_text('model = None\n')
    (tmp_path / 'out' / 'pilot.json').write_text(json.dumps(costs))

    with pytest.raises(SystemExit, match=r'own/seed-0 has a training with other sett'):
        run('--rows', 'own')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rows', 'own', 'none'], 'colors has no none; its rows are own, other'),
        (['--minutes', '0'], '--minutes must be more than 0; got 0'),
        (['--iterations', '-3'], '--iterations must be more than 0; got -3'),
        (['--minutes', '9'], '--minutes is no budget of --protocol iterations; give'),
        (['--threads', '0'], '--threads must be at least 1; got 0'),
    ],
)
def test_a_wrong_option_is_an_error_before_the_pilot(run, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        run(*arguments)

    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('minutes: 1\n', '', r"must have title, .*; got \['iterations', 'models', 't"),
        ('iterations: 2', 'iterations: 0', 'iterations must be a positive whole numb'),
        ('minutes: 1', 'minutes: x', "minutes must be a positive number; got 'x'"),
        ('own: configs', 'own: missing', r'no such file: .*missing/biformer/'),
        ('title: Two', 'title: [', 'colors.yml is no YAML'),
    ],
)
def test_a_mistake_in_a_file_is_an_error(run, tmp_path, old, new, message):
    (tmp_path / 'colors.yml').write_text(COMPARISON.replace(old, new))

    with pytest.raises(SystemExit, match=f'error: (?s:.)*{message}'):
        run()


def test_a_missing_comparison_is_an_error(run):
    with pytest.raises(SystemExit, match='DATA_SET: no such file: nothing, and none'):
        run(data_set='nothing')


def test_missing_data_have_a_hint_at_the_command(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(
        SystemExit, match=r'data/cifar10; .*prepare_data.py cifar10 DOWNLOADED$'
    ):
        run()


def test_all_rows_have_the_same_time_or_the_same_iterations():
    fast, slow = (Cost(1, seconds, 1, 1) for seconds in (0.1, 0.25))
    by_time, by_iterations = Protocol('time', 2), Protocol('iterations', 50)

    assert [by_time.iterations(cost) for cost in (fast, slow)] == [1200, 480]
    assert [by_iterations.iterations(cost) for cost in (fast, slow)] == [50, 50]
    assert Protocol('time', 1e-9).iterations(slow) == 1


@pytest.mark.parametrize('name', [x for x in NAMES if x != DETECTORS])
def test_all_backbones_of_a_data_set_have_the_same_recipe(name):
    """What differs is the backbone, and which of its parameters do not decay."""

    def recipe(path):
        cfg = Config.fromfile(ROOT / path).to_dict()
        del cfg['model']['backbone']
        for part in ('neck', 'head'):
            cfg['model'].get(part, {}).pop('in_channels', None)
        for key in ('constructor', 'paramwise_cfg'):
            cfg['optim_wrapper'].pop(key, None)
        return {key: cfg[key] for key in ('model', 'train_cfg', *RECIPE)}

    first, *others = map(recipe, read_comparison(name).models.values())

    assert len(others) > 4
    for other in others:
        assert other == first


def test_all_detectors_have_the_same_backbone_and_recipe():
    def shared(path):
        cfg = Config.fromfile(ROOT / path).to_dict()
        return {key: cfg['model'][key] for key in SHARED}, {x: cfg[x] for x in RECIPE}

    first, *others = map(shared, read_comparison(DETECTORS).models.values())

    assert len(others) == 3
    for other in others:
        assert other == first


def test_the_schedule_ends_with_the_budget(tiny_cifar10, monkeypatch):
    monkeypatch.chdir(tiny_cifar10)
    path = 'configs/baselines/resnet18-nano_1xb64-3e_cifar10.py'

    cfg = training_config(path, 400, seed=3)

    assert cfg.train_cfg.max_iters == 400
    warm_up, cosine = cfg.param_scheduler
    assert warm_up['end'] == 40
    assert cosine.get('end', 400) == 400
    assert not cosine['by_epoch']
    assert cfg.val_dataloader.dataset.data_prefix == 'test'
    assert cfg.randomness == dict(seed=3)


def test_the_table_has_mean_and_range_of_the_seeds():
    results = {
        seed: dict(values={'mIoU': value}, seconds=90.0)
        for seed, value in enumerate((50.0, 54.0, 52.0))
    }
    costs = dict(macs=2e9, iteration_seconds=0.5, peak_bytes=2**30, parameters=1e6)
    row = dict(name='a', config='a.py', **costs, iterations=180, results=results)

    assert report.figures(row)['mIoU'] == '52.0 (50.0 to 54.0)'
    assert report.figures(row)['minutes'] == '1.5'
    assert report.seeds_of([row]) == 'mean and range of 3 seeds each'
    assert report.seeds_of([row, dict(row, results={0: results[0]})]).endswith(
        'of 1 to 3 seeds each'
    )


def test_an_evaluation_without_detections_is_zero():
    found = {'coco/bbox_mAP': 0.314}

    assert percent(METRICS['mmdet'], found) == 31.4
    assert percent(METRICS['mmdet'], {}) == 0.0


def test_values_of_mmseg_are_written_as_json():
    value = percent(METRICS['mmseg'], {'mIoU': np.float32(31.4)})

    assert json.loads(json.dumps(value)) == 31.4


def test_the_clock_of_a_curve_stops_during_an_evaluation(tmp_path):
    now = iter(range(0, 1000, 10))
    curve = Curve(tmp_path, clock=lambda: next(now))

    curve.start(0, 2)  # at 0
    curve.pause()  # at 10
    curve.add_value(1, 50.0)
    curve.resume()  # at 20
    curve.resume()
    curve.add_value(2, 60.0)  # at 30

    points = read_curve(Path(curve.path))
    assert [point['seconds'] for point in points] == [10, 20]
