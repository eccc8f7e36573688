"""Focus-DETR through commands, inferencers and mim."""

import json
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer
from PIL import Image
from torch import nn

from mmsparse.apis import build_model, read_config

CONFIGS = Path(__file__).parents[2] / 'configs' / 'focus_detr'
DIGITS = min(CONFIGS.glob('*_digits.py'), key=lambda path: len(path.name))
LEAF = f"""\
_base_ = '{DIGITS}'
custom_hooks = [dict(type='mmsparse.KeptTokensHook')]
val_evaluator = [{{{{_base_.val_evaluator}}}}, dict(type='mmsparse.KeptTokenRecall')]
test_evaluator = val_evaluator
test_dataloader = dict(batch_size=3, num_workers=0, persistent_workers=False)
"""


@pytest.fixture(scope='module')
def files(small_digits):
    """A config with the recall of kept tokens, and a checkpoint with random weights."""
    folder = small_digits / 'focus'
    folder.mkdir()
    config, checkpoint = folder / 'focus.py', folder / 'focus.pth'
    config.write_text(LEAF)
    torch.manual_seed(0)
    detector = build_model(read_config(str(config)))
    detector.init_weights()
    nn.init.normal_(detector.level_embed)  # mmdet does not initialize it
    for head in detector.bbox_head.cls_branches:  # scores that differ
        nn.init.normal_(head.weight, std=0.3)
    torch.save(dict(state_dict=detector.state_dict(), meta={}), checkpoint)
    return config, checkpoint


@pytest.fixture(scope='module')
def images(small_digits):
    """Images of several shapes."""
    scenes = sorted((small_digits / 'data/digits/detection/val').glob('*.jpg'))[:5]
    shapes = [(128, 128), (200, 100), (128, 128), (64, 128), (300, 301)]
    found = []
    for path, shape in zip(scenes, shapes, strict=True):
        found.append(small_digits / 'focus' / path.name)
        Image.open(path).resize(shape).save(found[-1])
    return found


@pytest.fixture(scope='module')
def tested(files, small_digits, run_tool):
    """The metrics of tools/test.py."""
    out = small_digits / 'focus' / 'metrics.json'
    run_tool('test.py', *files, '--out', out, cwd=small_digits)
    return json.loads(out.read_text())


def test_metrics_have_ap_by_size_and_the_recall_of_kept_tokens(tested):
    names = ('all_tokens', 'layer_1', 'layer_2')
    recalls = [tested[f'kept_token_recall/{name}'] for name in names]

    assert 1 >= recalls[0] >= recalls[1] >= recalls[2] > 0
    assert {f'coco/bbox_mAP{size}' for size in ('', '_s', '_m', '_l')} <= set(tested)


@pytest.mark.slow
def test_mmdet_computes_exactly_the_same_metrics(files, tested, small_digits, run_host):
    work_dir = small_digits / 'focus' / 'mmdet'

    done = run_host(
        *('mmdet', 'test.py', *files, '--work-dir', work_dir), cwd=small_digits
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (written,) = work_dir.glob('*/*.json')
    of_mmdet = json.loads(written.read_text())
    assert {name: of_mmdet[name] for name in tested} == tested


def test_inference_draws_images_of_any_shape(files, images, small_digits, run_tool):
    config, checkpoint = files
    arguments = [*images, config, checkpoint, '--score-thr', '0.01', '--out', 'drawn']

    done = run_tool('infer.py', *arguments, cwd=small_digits)

    drawn = [small_digits / line for line in done.stdout.splitlines()[1::2]]
    for before, after in zip(images, drawn, strict=True):
        width, height = Image.open(before).size
        factor = max(1, 640 / max(width, height))
        assert Image.open(after).size == (
            pytest.approx(factor * width, abs=1),
            pytest.approx(factor * height, abs=1),
        )


@pytest.fixture(scope='module')
def inferencer(files):
    config, checkpoint = files
    return DetInferencer(str(config), weights=str(checkpoint), device='cpu')


def detect(inferencer, images, **options):
    names = [str(path) for path in images]
    found = inferencer(names, no_save_vis=True, **options)['predictions']
    return [
        {name: torch.tensor(x[name]) for name in ('labels', 'scores', 'bboxes')}
        for x in found
    ]


@pytest.mark.parametrize('batch_size', [2, 5])
def test_the_inferencer_of_mmdet_takes_batches_of_several_shapes(
    inferencer, images, batch_size
):
    found = detect(inferencer, images, batch_size=batch_size)

    for image, detections in zip(images, found, strict=True):
        ends = torch.tensor(Image.open(image).size)
        corners = detections['bboxes'].unflatten(-1, (2, 2))
        assert (corners >= 0).all()
        assert (corners <= ends).all()
        assert detections['scores'].isfinite().all()
        assert (detections['scores'].diff() <= 0).all()
        assert len(detections['scores']) == inferencer.cfg.model.test_cfg.max_per_img


def test_detections_do_not_depend_on_the_batch_size_with_one_shape(
    inferencer, small_digits
):
    same = sorted((small_digits / 'data/digits/detection/val').glob('*.jpg'))[:4]

    alone = detect(inferencer, same, batch_size=1)
    for batch_size in (3, 4):
        together = detect(inferencer, same, batch_size=batch_size)

        for actual, expected in zip(together, alone, strict=True):
            assert torch.equal(actual['labels'], expected['labels'])
            for name, tolerance in (('scores', 1e-4), ('bboxes', 1e-2)):
                torch.testing.assert_close(
                    actual[name], expected[name], atol=tolerance, rtol=0
                )


def test_attention_is_drawn_on_images_of_any_shape(
    files, images, small_digits, run_tool
):
    images = [images[1], images[4]]  # high, and odd sides
    done = run_tool('visualize.py', *files, *images, '--out', 'vis', cwd=small_digits)

    names = (
        'attention',
        'sampled_keys',
        'foreground',
        'kept_tokens',
        'sampling_locations',
        'receptive_field',
    )
    expected = [f'vis/{x.stem}_{name}.png' for x in images for name in names]
    assert done.stdout.splitlines()[-len(expected) :] == expected
    for path in expected:
        assert min(Image.open(small_digits / path).size) > 200


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('image', 'error: no such file: no.jpg'),
        ('checkpoint', 'error: no such file: no.pth'),
        ('config', 'error: config: no such file: no.py'),
    ],
)
def test_a_missing_file_is_an_error_before_anything_is_drawn(
    change, message, files, images, tmp_path, run_tool
):
    config, checkpoint = files
    given = dict(config=config, checkpoint=checkpoint, image=images[0])
    given[change] = dict(image='no.jpg', checkpoint='no.pth', config='no.py')[change]

    done = run_tool('visualize.py', *given.values(), cwd=tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == message
