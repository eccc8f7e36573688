"""A study of two small variants, trained for two iterations each."""

import dataclasses
import json
import sys

from _cli import run as run_command

import ablate
import ablation.run
import pytest
import torch
from ablation import costs, report
from ablation.run import train_variant
from ablation.study import ROOT, STUDIES, read_study, variant_config
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from public_data.bccd import CLASSES as CELLS
from public_data.cifar10 import CLASSES
from this_process import in_this_process
from training.folder import training_lock
from training.length import Length
from training.start import check_start

from mmsparse.apis import build_model, read_config
from mmsparse.checkpoint.state_dict import read_weights
from mmsparse.errors import UsageError

STUDY = """\
title: Two models
config: configs/biformer/biformer-pico_1xb32-12e_digits.py
epochs: 1
variants:
  one:
    about: as it is
    changes: &short
      train_dataloader.batch_size: 4
      train_dataloader.dataset.data_prefix: val
      train_dataloader.dataset.indices: 8
      val_dataloader.dataset.indices: 8
      test_dataloader.dataset.indices: 8
  two:
    about: without routing
    changes:
      <<: *short
      model.backbone.arch: {base: pico, block_types: [conv, conv, conv, full]}
"""
SMALL_DETECTOR = 'configs/focus_detr/focus-detr_dat-nano_1xb4-4e_digits.py'


@pytest.fixture
def run(small_digits, tmp_path, monkeypatch, capsys):
    """Run the command next to the digits, in this process; return its output."""
    monkeypatch.chdir(small_digits)
    for module in (ablate, ablation.run):
        monkeypatch.setattr(module, 'in_new_process', in_this_process)
    monkeypatch.setattr(costs, 'ROUNDS', 1)
    (tmp_path / 'study.yml').write_text(STUDY)

    def run(*arguments, study=tmp_path / 'study.yml'):
        command = ['ablate.py', study, '--out', tmp_path / 'out', *arguments]
        monkeypatch.setattr(sys, 'argv', list(map(str, command)))
        with pytest.raises(SystemExit) as end:
            run_command(ablate.main)
        if end.value.code:
            raise end.value
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_variants_are_trained_once_and_compared(run, tmp_path):
    out = tmp_path / 'out'
    first = run()

    record = json.loads((out / 'results.json').read_text())
    one, two = record['variants']
    assert (record['epochs'], record['seeds']) == (1, [0])
    assert record['figures']['two']['MACs (M)'] == f'{two["macs"] / 1e6:.1f}'
    assert record['command'].startswith('python ')
    assert one['macs'] > two['macs'] > 1e6
    assert one['parameters'] > two['parameters']
    assert 0 <= one['values'][0] <= 100
    assert (out / 'table.md').read_text() in first
    assert '| two | without routing |' in first
    assert Image.open(out / 'plot.png').width > 500

    checkpoints = sorted(out.glob('*/seed-0/epoch_1.pth'))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    (out / 'two' / 'seed-0' / 'result.json').unlink()
    again = run()

    assert len(checkpoints) == 2
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert '1/2 one, seed 0: finished' in again
    assert (
        json.loads((out / 'results.json').read_text())['variants'][1]['values']
        == (two['values'])
    )
    with pytest.raises(SystemExit, match=r'one/seed-0 has a training with other set'):
        run('--epochs', '2')


@pytest.mark.slow
def test_processes_share_the_variants(run, tmp_path):
    out = tmp_path / 'out'

    with training_lock(out / 'one' / 'seed-0', 'test'):
        first = run('--iterations', 1)
    reported = (out / 'table.md').exists()  # without the reference
    with training_lock(out / 'two' / 'seed-0', 'test'):
        second = run('--iterations', 1)

    assert '1/2 one, seed 0: another process trains it' in first
    assert first.endswith('trained by another process: one\n')
    assert not reported
    assert '2/2 two, seed 0: another process trains it' in second
    record = json.loads((out / 'results.json').read_text())
    assert [x['name'] for x in record['variants']] == ['one', 'two']

    (out / 'one' / 'seed-0' / 'result.json').unlink()
    with (
        training_lock(out / 'one' / 'seed-0', 'test'),
        pytest.raises(SystemExit, match=r'one/seed-0 has a training with other set'),
    ):
        run('--iterations', 2)


@pytest.mark.slow
def test_variants_start_from_load_from_and_resume_themselves(run, tmp_path):
    folder, path = tmp_path / 'out' / 'two' / 'seed-0', tmp_path / 'start.pth'
    state = save('biformer/biformer-pico_1xb32-12e_digits.py', path).state_dict()
    state['head.fc.bias'] += 3
    torch.save(dict(state_dict=state), path)
    options = ('--cfg-options', f'load_from={path}', '--iterations', 2)

    run(*options)
    record = json.loads((tmp_path / 'out' / 'results.json').read_text())
    trained = read_weights(folder / 'iter_2.pth')
    for name in ('result.json', 'iter_2.pth', 'last_checkpoint'):
        (folder / name).unlink()
    run(*options)

    assert record['changes'] == dict(load_from=str(path))
    assert trained['head.fc.bias'].mean() > 2.9
    assert 'resumed epoch: 0, iter: 1' in (folder / 'train.log').read_text()
    again = read_weights(folder / 'iter_2.pth')
    assert torch.equal(again['head.fc.bias'], trained['head.fc.bias'])


@pytest.mark.parametrize('key', ['model.backbone', 'model.backbone.arch.base'])
def test_settings_of_all_variants_are_not_those_of_one(run, key, tmp_path):
    message = (
        f'{key} is not a setting of all variants: two changes model.backbone.arch;'
    )
    with pytest.raises(SystemExit, match=message):
        run('--cfg-options', f'{key}=pico')

    text = STUDY.replace('variants:', f'changes: {{{key}: pico}}\nvariants:')
    (tmp_path / 'study.yml').write_text(text)
    with pytest.raises(SystemExit, match='is not a setting of all variants'):
        run()


@pytest.mark.slow
def test_a_training_of_iterations_resumes_and_is_evaluated(run, tmp_path):
    study = read_study(tmp_path / 'study.yml')
    arguments = (study, study.variants[0], Length(2, 'iterations'), 0, None)

    in_this_process(train_variant, arguments, tmp_path / 'one', 'one')
    first = json.loads((tmp_path / 'one' / 'result.json').read_text())
    kept = sorted(path.name for path in (tmp_path / 'one').glob('*.pth'))
    (tmp_path / 'one' / 'result.json').unlink()
    (tmp_path / 'one' / 'iter_2.pth').unlink()
    (tmp_path / 'one' / 'last_checkpoint').write_text(str(tmp_path / 'one/iter_1.pth'))
    in_this_process(train_variant, arguments, tmp_path / 'one', 'one')
    again = json.loads((tmp_path / 'one' / 'result.json').read_text())

    assert kept == ['iter_1.pth', 'iter_2.pth']
    assert again['checkpoint'] == str(tmp_path / 'one' / 'iter_2.pth')
    assert {**first, 'train_seconds': 0} == {**again, 'train_seconds': 0}
    log = (tmp_path / 'one' / 'train.log').read_text()
    assert log.count('accuracy/top1') == 2  # only at the end


@pytest.mark.parametrize('seeds', [1, 3])
def test_the_plot_shows_the_range_of_the_seeds_and_does_not_enlarge_noise(
    seeds, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, *args, **more: saved.append(self)
    )
    saved, values = [], [70.0, 70.4, 70.2][:seeds]
    row = dict(metric='mIoU', macs=1e9, iteration_seconds=0.1)
    rows = [
        dict(row, name=name, values=[x + shift for x in values])
        for name, shift in (('one', 0), ('two', 0.3))
    ]

    report.plot(rows, tmp_path / 'plot.png', 'Heads\nmine, 2 epochs')

    (figure,) = saved
    metric, time = figure.axes[0], figure.axes[1]
    low, high = metric.get_ylim()
    assert high - low == pytest.approx(10)
    assert low < 70 < 70.7 < high
    assert time.get_xlim() == pytest.approx((75, 125))
    assert metric.get_ylabel() == 'mIoU, in %'
    bars = [x for x in metric.collections if isinstance(x, LineCollection)]
    if seeds == 1:
        assert not bars
        assert 'mine, 2 epochs\none seed each' in figure.get_suptitle()
    else:
        (ends,) = bars[0].get_segments()
        assert ends[:, 1].tolist() == pytest.approx([70, 70.4])
        assert 'mean and range of 3 seeds each' in figure.get_suptitle()


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        (
            'block_types: [conv, conv, conv, full]',
            'depth: 1',
            r"variant two: .*unknown: \['depth'\]",
        ),
        (
            'title: Two models\n',
            '',
            r'must have title, config, epochs or iterations, and',
        ),
        ('base: pico', 'base: huge', r"variant two: .*arch\['base'\] must be one of"),
        ('epochs: 1', 'epochs: 0', r'--epochs must be at least 1; got 0'),
        ('epochs: 1', 'epochs: two', r"epochs must be of type int; got 'two'"),
        ('epochs: 1', 'iterations: 0', r'--iterations must be at least 1; got 0'),
        (
            'epochs: 1',
            'epochs: 1\niterations: 2',
            r'epochs or iterations, and not both',
        ),
        ('epochs: 1', '', r'epochs or iterations, and not both'),
        ('config: configs', 'config: 3 #', r'config must be of type str; got 3'),
        ('  two:', '  2:', r'name must be of type str; got 2'),
        ('about: as it is', 'about: [as, it]', r"about must be .* got \['as', 'it'\]"),
        ('changes: &short', 'changes: &short 3 #', r'must have title, config, epochs'),
        (
            'biformer/biformer-pico_1xb32-12e',
            'biformer/fpn_biformer-pico_1xb8-1800i',
            r'1800i_digits.py trains by iterations; give iterations instead of epochs',
        ),
    ],
)
def test_mistakes_in_a_study_are_reported_before_training(
    run, tmp_path, old, new, message
):
    (tmp_path / 'study.yml').write_text(STUDY.replace(old, new))

    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        run()

    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('folder', ['study.yml', 'study.yml/below'])
def test_a_file_as_output_folder_is_an_error(run, tmp_path, folder):
    with pytest.raises(SystemExit, match=r'--out must be a folder; .*yml is a file'):
        run('--out', tmp_path / folder)


def test_a_missing_study_is_an_error(run):
    with pytest.raises(SystemExit, match='STUDY: no such file: nothing'):
        run(study='nothing')


def save(config, path):
    """Save a model of the repository as mmengine does; return it."""
    model = build_model(read_config(str(ROOT / 'configs' / config)))
    model.init_weights()  # level_embed of mmdet is uninitialized before
    torch.save(dict(state_dict=model.state_dict()), path)
    return model


def test_weights_of_another_backbone_are_refused_before_training(run, tmp_path):
    path = tmp_path / 'other.pth'
    save('shunted_transformer/shunted-nano_1xb32-14e_digits.py', path)

    with pytest.raises(SystemExit, match=rf'error: {path} has no backbone that fits B'):
        run('--pretrained', path)

    assert not (tmp_path / 'out').exists()


def test_a_backbone_starts_from_a_classifier_without_output_norms(tmp_path):
    path = tmp_path / 'classifier.pth'
    save('biformer/biformer-nano_1xb32-9e_digits.py', path)
    config = 'focus_detr/focus-detr_biformer-nano_1xb4-4e_digits.py'
    backbone = save(config, tmp_path / 'detector.pth').backbone

    check_start(backbone, path)
    check_start(backbone, tmp_path / 'detector.pth')

    state = torch.load(path)['state_dict']
    state['backbone.downsamples.1.1.weight'] = torch.ones(1)
    torch.save(dict(state_dict=state), path)
    with pytest.raises(UsageError, match=r'size mismatch: downsamples\.1\.1\.weight '):
        check_start(backbone, path)


@pytest.fixture(scope='session')
def small_data(small_digits):
    """The working directory of the digits, with small images of CIFAR-10 and BCCD."""
    for split in ('train', 'test'):
        for name in CLASSES:
            folder = small_digits / 'data' / 'cifar10' / split / name
            folder.mkdir(parents=True)
            Image.new('RGB', (32, 32)).save(folder / '0000.png')
    bccd = small_digits / 'data' / 'bccd'
    for folder in ('images', 'annotations'):
        (bccd / folder).mkdir(parents=True)
    Image.new('RGB', (64, 48)).save(bccd / 'images' / 'cells.jpg')
    content = dict(
        images=[dict(id=1, file_name='cells.jpg', width=64, height=48)],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[8, 8, 9, 9], area=81, iscrowd=0)
        ],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CELLS)],
    )
    for split in ('train', 'val', 'test'):
        (bccd / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return small_digits


@pytest.mark.parametrize('study', sorted(x.stem for x in STUDIES.glob('*.yml')))
def test_every_variant_of_the_studies_builds(study, small_data, monkeypatch):
    monkeypatch.chdir(small_data)
    study = read_study(study)

    assert len(study.variants) > 3
    assert study.variants[0].changes == {}
    for variant in study.variants[1:]:
        assert variant.changes
        with torch.device('meta'):
            build_model(variant_config(study, variant, study.length, 0, None))


@pytest.mark.slow
def test_costs_of_detectors_are_measured(small_digits, monkeypatch):
    monkeypatch.chdir(small_digits)
    monkeypatch.setattr(costs, 'ROUNDS', 1)
    study = read_study('focus_detr')
    studied = {x.name: x for x in study.variants}
    variants = tuple(
        dataclasses.replace(x, changes=x.changes | {'train_dataloader.batch_size': 1})
        for x in (study.variants[0], studied['keep-all'])
    )

    sparse, all_kept = costs.measure_costs(
        dataclasses.replace(study, variants=variants, config=SMALL_DETECTOR),
        Length(1, 'epochs'),
        None,
    )

    assert 1e7 < sparse.macs < all_kept.macs
    assert sparse.parameters == all_kept.parameters > 1e6
    assert sparse.iteration_seconds > 0 < all_kept.iteration_seconds
    # Of tiny images, backbone and decoder decide.
    assert sparse.peak_bytes == pytest.approx(all_kept.peak_bytes, rel=0.05)
    assert sparse.peak_bytes > 2**20
