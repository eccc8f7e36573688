"""Train, evaluate and infer by the commands, two iterations each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from PIL import Image

from mmsparse.apis import build_model, read_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
SHORT = {  # settings for two iterations
    'biformer/biformer-nano_1xb32-9e_digits': (
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=4',
        'train_dataloader.dataset.data_prefix=val',
        'train_dataloader.dataset.indices=8',
        'train_cfg.val_interval=1',
    ),
    'focus_detr/focus-detr_biformer-nano_1xb4-4e_digits': (
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=2',
        'train_dataloader.dataset.indices=4',
        'train_cfg.val_interval=1',
    ),
    'biformer/fpn_biformer-nano_1xb8-1600i_digits': (
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'train_dataloader.batch_size=2',
        'default_hooks.checkpoint.interval=1',
    ),
}
METRICS = dict(zip(SHORT, ('accuracy/top1', 'coco/bbox_mAP', 'mIoU'), strict=True))
HOSTS = dict(zip(SHORT, ('mmpretrain', 'mmdet', 'mmseg'), strict=True))


def options(name, *more):
    return ['--cfg-options', *SHORT[name], *more]


@pytest.fixture(scope='session', params=SHORT)
def trained(request, small_digits):
    """Train for two iterations; return the config, work directory and checkpoint."""
    name = request.param
    work_dir = small_digits / 'end_to_end' / Path(name).name  # of no other test
    config = CONFIGS / f'{name}.py'
    command = (ROOT / 'tools' / 'train.py', config, *options(name))
    command = (*command, '--work-dir', work_dir)
    if HOSTS[name] == 'mmpretrain':  # in a new process: forks have imported what warns
        done = subprocess.run(
            [sys.executable, *command], cwd=small_digits, capture_output=True, text=True
        )
    else:
        done = Forked(*command, cwd=small_digits, warn=True).finish()
    assert_no_warnings(done)
    checkpoint = Path(done.stdout.splitlines()[-1])
    return name, work_dir, small_digits / checkpoint


def run_command(tool, *arguments, cwd, status=0):
    """Run a command without ignoring warnings; there must be none."""
    command = (ROOT / 'tools' / tool, *arguments)
    return assert_no_warnings(Forked(*command, cwd=cwd, warn=True).finish(), status)


def assert_no_warnings(done, status=0):
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    lines = (done.stdout + done.stderr).splitlines()
    assert not [line for line in lines if 'Warning' in line or ' WARNING ' in line]
    return done


def test_training_evaluates_and_prints_its_last_checkpoint(trained):
    name, work_dir, checkpoint = trained
    (log,) = work_dir.glob('*/*.log')

    assert checkpoint.is_file()
    assert (work_dir / 'last_checkpoint').read_text().endswith(checkpoint.name)
    assert METRICS[name].rpartition('/')[2] in log.read_text()


def test_testing_writes_the_metric(trained, small_digits):
    name, work_dir, checkpoint = trained
    out = work_dir / 'metrics.json'
    done = run_command(
        *('test.py', CONFIGS / f'{name}.py', checkpoint, '--out', out, *options(name)),
        cwd=small_digits,
    )

    assert done.stdout.splitlines()[-1] == str(out)
    assert 0 <= json.loads(out.read_text())[METRICS[name]] <= 100


def test_weights_are_tested_with_the_config_of_a_resumed_training(
    small_digits, tmp_path, run_tool
):
    name = 'biformer/biformer-nano_1xb32-9e_digits'
    config = CONFIGS / f'{name}.py'
    model = build_model(read_config(str(config)))
    torch.save(model.state_dict(), tmp_path / 'weights.pth')

    run_tool(
        *('test.py', config, tmp_path / 'weights.pth', '--work-dir', tmp_path),
        *options(name, 'resume=True', 'test_dataloader.dataset.indices=4'),
        cwd=small_digits,
    )


def test_testing_a_text_file_is_an_error(small_digits, tmp_path, run_tool):
    name = 'biformer/biformer-nano_1xb32-9e_digits'
    path = tmp_path / 'text.pth'
    path.write_text('not a checkpoint')

    done = run_tool(
        *('test.py', CONFIGS / f'{name}.py', path, *options(name)),
        cwd=small_digits,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f'error: {path} is damaged, or no')
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_training_runs_no_code_of_load_from_and_names_damaged_labels(
    small_digits, tmp_path, run_tool
):
    name = 'biformer/fpn_biformer-nano_1xb8-1600i_digits'
    data = shutil.copytree(small_digits / 'data', tmp_path / 'data')
    torch.save(dict(state_dict=dict(x=Code())), tmp_path / 'evil.pth')
    command = ['train.py', CONFIGS / f'{name}.py', *options(name)]

    done = run_tool(*command, 'load_from=evil.pth', cwd=tmp_path, check=False)

    assert done.stderr.splitlines()[-1].startswith('error: evil.pth is refused: ')
    assert not (tmp_path / 'ran').exists()

    for path in (data / 'digits/segmentation/annotations/training').glob('*.png'):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = run_tool(*command, cwd=tmp_path, check=False)

    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert 'annotations/training/' in error
    assert 'LoadAnnotations' in error


class Code:
    """Pickles as a call of a function."""

    def __reduce__(self):
        return os.mkdir, ('ran',)


def test_training_resumes_from_the_last_checkpoint(trained, small_digits, run_tool):
    name, work_dir, checkpoint = trained
    further = ('train_cfg.max_iters=4' if 'fpn' in name else 'train_cfg.max_epochs=2',)
    before = torch.load(checkpoint, weights_only=False)
    resumed = shutil.copytree(work_dir, work_dir.with_name(f'{work_dir.name}-resumed'))

    run_tool(
        'train.py',
        CONFIGS / f'{name}.py',
        '--resume',
        '--work-dir',
        resumed,
        *options(name, *further),
        cwd=small_digits,
    )

    last = Path((resumed / 'last_checkpoint').read_text())
    after = torch.load(small_digits / last, weights_only=False)
    assert before['meta']['iter'] == 2
    assert after['meta']['iter'] == 4
    # The optimizer and the history of the loss are resumed too.
    steps = {int(state['step']) for state in after['optimizer']['state'].values()}
    assert steps == {4}
    history = after['message_hub']['log_scalars']['train/loss'].data[0]
    assert history[:2].tolist() == (
        before['message_hub']['log_scalars']['train/loss'].data[0].tolist()
    )
    assert len(history) == 4


def test_inference_draws_all_images_and_reports_a_text_file(trained, small_digits):
    name, work_dir, checkpoint = trained
    images = sorted((small_digits / 'data/digits/detection/val').glob('*.jpg'))[:2]
    folder = work_dir / 'images'
    folder.mkdir()
    shutil.copy(images[1], folder / 'b.JPG')
    text = folder / 'text.png'
    text.write_text('not an image')
    out = work_dir / 'drawn'

    done = run_command(
        *('infer.py', images[0], folder, CONFIGS / f'{name}.py', checkpoint),
        *('--out', out, '--score-thr', '0'),
        cwd=small_digits,
        status=1,
    )

    assert done.stderr.splitlines()[-1] == f'error: not a readable image: {text}'
    drawn = [out / 'vis' / images[0].name, out / 'vis' / 'b.JPG']
    assert done.stdout.splitlines()[-3::2] == list(map(str, drawn))
    for path in drawn:
        assert max(Image.open(path).size) == 640
        found = json.loads((out / 'preds' / f'{path.stem}.json').read_text())
        assert (found['width'], found['height']) == (128, 128)
        if HOSTS[name] == 'mmdet':
            assert np.array(found['bboxes']).max() <= 128
            assert len(found['scores']) == len(found['names']) == 50
        elif HOSTS[name] == 'mmseg':
            label_map = np.asarray(Image.open(out / 'preds' / found['label_map']))
            labels, counts = np.unique(label_map, return_counts=True)
            assert label_map.shape == (128, 128)
            assert [x['label'] for x in found['classes']] == labels.tolist()
            assert [x['pixels'] for x in found['classes']] == counts.tolist()
        else:
            assert found['pred_class'] == str(found['pred_label'])


def test_other_commands_print_no_warning_of_a_library(trained, small_digits):
    name, work_dir, checkpoint = trained
    config = CONFIGS / f'{name}.py'
    image = sorted((small_digits / 'data/digits/detection/val').glob('*.jpg'))[0]

    for command in (
        ('visualize.py', config, checkpoint, image, '--out', work_dir / 'seen'),
        ('get_flops.py', config, '--time', '--repeats', '1'),
        ('publish_model.py', checkpoint, '--config', config, '--out', work_dir / 'p'),
    ):
        done = run_command(*command, cwd=small_digits)
        assert done.stderr == ''


def test_what_mim_runs_trains_the_same_config(trained, small_digits, run_host):
    name, work_dir, _ = trained  # `mim train` itself is in test_packaging.py
    out = work_dir.with_name(f'mim-{work_dir.name}')
    arguments = (CONFIGS / f'{name}.py', '--work-dir', out, *options(name))

    done = run_host(HOSTS[name], 'train.py', *arguments, cwd=small_digits)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (out / 'last_checkpoint').is_file()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nothing.py'], 'error: config: no such file: nothing.py'),
        (
            [CONFIGS / 'focus_detr/focus-detr_biformer-nano_1xb4-4e_digits.py'],
            'error: train_dataloader: no data at data/digits/detection/; put the data '
            'there or change train_dataloader.dataset.data_root; create it with: '
            'python tools/prepare_digits.py',
        ),
    ],
    ids=['no config', 'no data'],
)
def test_a_mistake_is_an_error_in_one_line(arguments, message, tmp_path, run_tool):
    done = run_tool('train.py', *arguments, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == message
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'command',
    ['train.py mine.py', 'test.py mine.py a.png', 'infer.py a.png mine.py a.png'],
)
def test_an_unknown_arch_is_an_error_with_the_known_ones(
    command, small_digits, tmp_path, run_tool
):
    base = CONFIGS / 'biformer/biformer-nano_1xb32-9e_digits.py'
    text = f"_base_ = {str(base)!r}\nmodel = dict(backbone=dict(arch='huge'))\n"
    (tmp_path / 'mine.py').write_text(text)
    (tmp_path / 'data').symlink_to(small_digits / 'data')
    Image.new('RGB', (32, 32)).save(tmp_path / 'a.png')

    done = run_tool(*command.split(), cwd=tmp_path, check=False)

    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: config: BiFormer: arch must be one of ['base', 'na")
    assert error.endswith("got 'huge'.")
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('missing', ['image', 'checkpoint'])
def test_inference_names_the_missing_file(missing, tmp_path, run_tool):
    good = tmp_path / 'good.png'
    Image.new('RGB', (32, 32)).save(good)
    image, checkpoint = ('no', good) if missing == 'image' else (good, 'no')

    done = run_tool('infer.py', image, 'any.py', checkpoint, cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'error: no such file: no'


@pytest.mark.parametrize(
    'tool',
    ['train.py', 'test.py', 'infer.py', 'check_parity.py', 'quickstart.py'],
)
def test_help_says_what_the_command_does(tool, tmp_path, run_tool):
    done = run_tool(tool, '--help', cwd=tmp_path)

    assert 'usage:' in done.stdout
