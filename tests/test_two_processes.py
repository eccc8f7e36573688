"""Two processes on the CPU train and evaluate as one does."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DINO = 'biformer/dino_biformer-nano_1xb4-4e_digits'
FOCUS_DETR = 'focus_detr/focus-detr_biformer-nano_1xb4-4e_digits'
# Two steps without randomness, and an odd number of images to evaluate.
COMMON = """
_base_ = '{base}.py'
custom_imports = dict(
    imports=['mmsparse.registry', 'rank_hooks'], allow_failed_imports=False
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='KeepGradients'),
    dict(type='EvenNoise'),
]
sync_bn = 'torch'
optim_wrapper = dict(clip_grad=None)
model = dict(backbone=dict(drop_path_rate=0.0))
train_dataloader = dict(sampler=dict(shuffle=False))
val_dataloader = dict(batch_size=2, dataset=dict(indices=5))
val_evaluator = [{{{{_base_.val_evaluator}}}}, dict(type='CountImages')]
"""
SHARE = 'train_dataloader.batch_size={}'  # per process
TASKS = {
    'biformer/biformer-nano_1xb32-9e_digits': """
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader['dataset'] = dict(indices=8, pipeline={{_base_.test_pipeline}})
""",
    'biformer/fpn_biformer-nano_1xb8-1600i_digits': """
train_cfg = dict(max_iters=2, val_interval=2)
train_dataloader['dataset'] = dict(pipeline={{_base_.test_pipeline}})
model['decode_head'] = dict(dropout_ratio=0.0)
""",
    # Denoising queries are padded to the maximum number of boxes in a process, and
    # attend to the padding: so all images need the same number of boxes.
    FOCUS_DETR: """
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader['dataset'] = dict(indices=8, ann_file='two_boxes.json')
model['dn_cfg'] = dict(group_cfg=dict(_delete_=True, dynamic=False, num_groups=2))
""",
}


def write_config(folder, base, name, text):
    """Write a config based on one of mmsparse."""
    path = folder / f'{name}.py'
    path.write_text(COMMON.format(base=ROOT / 'configs' / base) + text)
    return path


def keep_boxes(folder, name, count):
    """Write annotations of eight images.

    Args:
        count: Number of boxes as a function of the index of the image.
    """
    source = folder / 'data/digits/detection/annotations/train.json'
    data = json.loads(source.read_text())
    boxes = {}
    for box in data['annotations']:
        boxes.setdefault(box['image_id'], []).append(box)
    data['images'] = [x for x in data['images'] if len(boxes[x['id']]) >= 2][:8]
    data['annotations'] = [
        box
        for i, image in enumerate(data['images'])
        for box in boxes[image['id']][: count(i)]
    ]
    (folder / name).write_text(json.dumps(data))


@pytest.fixture(scope='module', autouse=True)
def plugged():
    """Let commands import the hooks of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', f'{ROOT / "tests"}{os.pathsep}{ROOT}')
        yield


@pytest.fixture(scope='module', params=TASKS)
def trained(request, small_digits, run_tool, train_in_two):
    """Return the work directories of training in one and in two processes."""
    keep_boxes(small_digits, 'two_boxes.json', lambda i: 2)
    text = TASKS[request.param].replace("'two", f"'{small_digits}/two")
    config = write_config(small_digits, request.param, 'even', text)
    one, two = (small_digits / f'{Path(request.param).name}_in_{n}' for n in (1, 2))
    options = (config, '--work-dir', one, '--cfg-options', SHARE.format(4))
    run_tool('train.py', *options, cwd=small_digits)
    options = (config, '--work-dir', two, '--cfg-options', SHARE.format(2))
    train_in_two(*options, cwd=small_digits)
    return one, two


def norm(gradients):
    return torch.stack([x.norm() for x in gradients.values()]).norm()


@pytest.mark.slow
def test_gradients_are_those_of_one_process(trained):
    one, two = trained
    expected = torch.load(one / 'gradients_0_0.pth')
    first, second = (torch.load(two / f'gradients_0_{rank}.pth') for rank in (0, 1))

    torch.testing.assert_close(first, second, atol=0, rtol=0)
    # Rounding can switch a ReLU on or off, which changes single entries.
    total = norm(expected)
    for name, gradient in expected.items():
        error = (first[name] - gradient).norm()
        assert error <= 0.02 * gradient.norm() + 1e-5 * total, name
    assert norm({name: first[name] - expected[name] for name in first}) < 1e-3 * total
    assert total > 0.1


@pytest.mark.slow
def test_each_image_is_evaluated_once(trained):
    (scalars,) = trained[1].glob('*/vis_data/scalars.json')
    metrics = json.loads(scalars.read_text().splitlines()[-1])

    assert metrics['results'] == metrics['images'] == 5


@pytest.mark.slow
@pytest.mark.parametrize('base', [DINO, FOCUS_DETR], ids=['dino', 'focus-detr'])
def test_one_process_may_have_no_boxes(base, small_digits, train_in_two):
    keep_boxes(small_digits, 'no_boxes.json', lambda i: 0 if i % 2 else 2)
    text = f"""
train_cfg = dict(max_epochs=1, val_interval=2)
train_dataloader['dataset'] = dict(
    indices=8, ann_file='{small_digits}/no_boxes.json', filter_cfg=None
)
"""
    config = write_config(small_digits, base, 'no_boxes', text)

    done = train_in_two(
        *(config, '--cfg-options', SHARE.format(2), 'default_hooks.logger.interval=1'),
        cwd=small_digits,
    )

    assert '[1][2/2]' in done.stdout + done.stderr


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job(small_digits, dist_train):
    base = 'biformer/biformer-nano_1xb32-9e_digits'
    text = f"{TASKS[base]}\ncustom_hooks.append(dict(type='Die', iteration=1, rank=1))"
    config = write_config(small_digits, base, 'die', text)

    done = dist_train(config, '--cfg-options', SHARE.format(2), cwd=small_digits)

    died = (small_digits / 'work_dirs/die/died').stat().st_mtime
    assert done.returncode != 0
    assert time.time() - died < 60
    assert 'train.py FAILED' in done.stderr
    assert 'Signal 9 (SIGKILL) received' in done.stderr
