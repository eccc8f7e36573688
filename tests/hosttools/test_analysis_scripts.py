"""Scripts of mmdet, mmseg and mmpretrain, as `mim run` runs them, on small models."""

import json
import os
import pickle
from pathlib import Path

import pytest
from forked import Forked
from mmengine.utils import get_installed_path

GRAD_CAM = Path(__file__).with_name('grad_cam_1_4.py')
SHOW_ALL = ('--cfg-options', 'model.test_cfg.score_thr=0.0')
LOG = [
    dict(epoch=epoch, iter=2 * epoch + i, step=2 * epoch + i, loss=1 / epoch, time=0.1)
    for epoch in (1, 2)
    for i in (0, 1)
]


def first_image(folder):
    return next(path for path in sorted(folder.rglob('*.jpg')))


def test_the_confusion_matrix_of_a_classifier(run_script, model_files, small_digits):
    config, weights = model_files('mmpretrain')

    printed = run_script(
        *('mmpretrain', 'analysis_tools/confusion_matrix.py', config, weights),
        *('--show-path', 'matrix.png'),
    )

    assert 'confusion_matrix/result' in printed
    assert (small_digits / 'matrix.png').is_file()


def test_boxes_augmented_by_mmdet_and_their_confusion_matrix(
    run_script, model_files, small_digits
):
    files = model_files('mmdet')
    options = ('--tta', '--out', 'boxes.pkl', '--work-dir', 'tested')
    run_script('mmdet', 'test.py', *files, *options, *SHOW_ALL)

    run_script(
        'mmdet', 'analysis_tools/confusion_matrix.py', files[0], 'boxes.pkl', 'matrix'
    )

    boxes = pickle.loads((small_digits / 'boxes.pkl').read_bytes())
    assert len(boxes) == 8
    assert 0 < len(boxes[0]['pred_instances']['scores']) <= 100
    assert (small_digits / 'matrix/confusion_matrix.png').is_file()


@pytest.mark.parametrize(
    ('host', 'script', 'options'),
    [
        ('mmpretrain', 'visualization', ('--mode', 'original')),
        ('mmdet', 'analysis_tools', ('--show-interval', '0')),
    ],
    ids=['mmpretrain', 'mmdet'],
)
def test_samples_are_drawn(
    host, script, options, run_script, model_files, small_digits
):
    config, _ = model_files(host)

    run_script(
        *(host, f'{script}/browse_dataset.py', config, '--not-show'),
        *('--output-dir', small_digits / f'seen_{host}', *options),
        *('--cfg-options', 'train_dataloader.dataset.indices=3'),
    )

    assert len(list((small_digits / f'seen_{host}').rglob('*.jpg'))) == 3


def test_the_learning_rate_is_drawn(run_script, model_files, small_digits):
    config, _ = model_files('mmpretrain')

    run_script(
        *('mmpretrain', 'visualization/vis_scheduler.py', config),
        *('--dataset-size', '320', '--save-path', 'learning_rate.png'),
    )

    assert (small_digits / 'learning_rate.png').is_file()


@pytest.mark.parametrize('host', ['mmpretrain', 'mmdet', 'mmseg'])
def test_the_log_is_drawn(host, run_script, small_digits):
    if host != 'mmpretrain':
        pytest.importorskip('seaborn')
    lines = '\n'.join(map(json.dumps, LOG))
    (small_digits / 'scalars.json').write_text(lines)
    plot = () if host == 'mmseg' else ('plot_curve',)

    run_script(
        *(host, 'analysis_tools/analyze_logs.py', *plot, 'scalars.json'),
        *('--keys', 'loss', '--out', f'loss_{host}.png'),
    )

    assert (small_digits / f'loss_{host}.png').is_file()


def test_segmentation_is_timed(run_script, model_files):
    printed = run_script(
        *('mmseg', 'analysis_tools/benchmark.py', *model_files('mmseg')),
        *('--log-interval', '2', '--work-dir', 'timed'),
    )

    assert 'fps: ' in printed


@pytest.mark.parametrize(
    ('host', 'script', 'options'),
    [
        (
            'mmpretrain',
            'visualization/vis_cam.py',
            ('--target-layers', 'backbone.stages.3', '--save-path'),
        ),
        (
            'mmseg',
            'analysis_tools/visualization_cam.py',
            (
                *('--device', 'cpu', '--out-file', 'labels.png'),
                *('--target-layers', 'backbone.stages[3]', '--cam-file'),
            ),
        ),
    ],
    ids=['mmpretrain', 'mmseg'],
)
def test_class_activation_maps_of_a_stage_are_drawn(
    host, script, options, model_files, small_digits
):
    pytest.importorskip('pytorch_grad_cam')
    image = first_image(small_digits / 'data/digits/segmentation/images/validation')
    script = Path(get_installed_path(host), '.mim/tools', script)
    target = small_digits / f'cam_{host}.png'

    done = Forked(
        *(GRAD_CAM, script, image, *model_files(host), *options, target),
        cwd=small_digits,
        PYTHONPATH=os.environ.get('PYTHONPATH', ''),
    ).finish()

    assert done.returncode == 0, done.stderr[-3000:]
    assert target.is_file()
