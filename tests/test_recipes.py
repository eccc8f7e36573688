"""The recipes of docs/recipes.md, with digits in place of pets."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.hooks import EarlyStoppingHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope
from PIL import Image

from mmsparse.apis import build_model, read_config, use_tta
from mmsparse.checkpoint import write_checkpoint
from mmsparse.checks import check_data
from mmsparse.models import BiFormer

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'recipes.md').read_text()
SECTIONS = dict(re.findall(r'\n## (.*?)\n(.*?)(?=\n## |\Z)', TEXT, re.DOTALL))
PETS = ('cat', 'dog', 'horse')
WEIGHTS = 'checkpoints/biformer-small_in1k.pth'
# A smaller backbone and smaller images than those of the recipe.
NANO = {
    'model.backbone.arch': 'nano',
    'model.backbone.init_cfg': None,
    'model.neck.in_channels': [64, 128, 256],
    'train_dataloader.dataset.pipeline.2.scale': (128, 128),
    'val_dataloader.dataset.pipeline.1.scale': (128, 128),
    'test_dataloader.dataset.pipeline.1.scale': (128, 128),
    **{
        f'{split}_dataloader.{key}': value
        for split in ('train', 'val', 'test')
        for key, value in (('num_workers', 0), ('persistent_workers', False))
    },
}


def code(heading, language='python'):
    """Return the code blocks of a section."""
    return re.findall(rf'```{language}\n(.*?)```', SECTIONS[heading], re.DOTALL)


@pytest.fixture(scope='module')
def clone(small_digits, tmp_path_factory):
    """A folder like the repository, with boxes of three classes in data/mine."""
    folder = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'data').mkdir()
    (folder / 'data/digits').symlink_to(small_digits / 'data/digits')
    shutil.copytree(small_digits / 'data/digits/detection', folder / 'data/mine')
    for path in (folder / 'data/mine/annotations').glob('*.json'):
        coco = json.loads(path.read_text())
        names = {x['id']: PETS[int(x['name']) % 3] for x in coco['categories']}
        ids = {name: number for number, name in enumerate(PETS, start=1)}
        coco['categories'] = [dict(id=ids[name], name=name) for name in PETS]
        for annotation in coco['annotations']:
            annotation['category_id'] = ids[names[annotation['category_id']]]
        path.write_text(json.dumps(coco))
    (folder / 'my_config.py').write_text(
        code('Fine-tune a backbone on your own boxes')[0]
    )
    return folder


@pytest.fixture
def recipe(clone, monkeypatch):
    """Read a config of the page in the clone."""
    monkeypatch.chdir(clone)

    def read(heading, index=0, **changes):
        block = code(heading)[index]
        Path('recipe.py').write_text(block)
        small = NANO if 'my_config.py' in block else {}
        return read_config('recipe.py', small | changes)

    return read


def first_batch(cfg, split='train', images=2):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    return pseudo_collate([dataset[i] for i in range(images)])


def build(cfg):
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    return model


def train(model, cfg, steps, batch):
    """Train on one batch; return the losses."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    return [model.train_step(batch, optimizer)['loss'].item() for _ in range(steps)]


BOXES = 'Fine-tune a backbone on your own boxes'


def test_the_config_for_boxes_learns(clone, monkeypatch):
    monkeypatch.chdir(clone)
    cfg = read_config('my_config.py', NANO)
    check_data(cfg, cfg.default_scope)
    batch = first_batch(cfg, images=1)

    losses = train(build(cfg), cfg, 5, batch)

    assert losses[-1] < 0.96 * losses[0]
    assert batch['data_samples'][0].img_shape == (128, 128)


def test_the_config_for_boxes_loads_the_weights(clone, monkeypatch):
    monkeypatch.chdir(clone)
    cfg = read_config('my_config.py')
    with torch.device('meta'):
        expected = BiFormer('small', out_indices=(1, 2, 3)).state_dict()
    weights = {
        f'backbone.{key}': torch.rand(x.shape).to(x.dtype)
        for key, x in expected.items()
    }
    Path(WEIGHTS).parent.mkdir()
    write_checkpoint(WEIGHTS, weights, meta={})

    model = build_model(cfg)
    model.backbone.init_weights()

    for key, tensor in model.backbone.state_dict().items():
        if not key.startswith('out_norms.layer'):
            assert torch.equal(tensor, weights[f'backbone.{key}']), key
    shutil.rmtree('checkpoints')


def test_dat_takes_the_place_of_biformer(clone, monkeypatch):
    monkeypatch.chdir(clone)
    cfg = read_config('my_config.py')
    backbone = cfg.model.backbone
    assert "`type='mmsparse.DAT', arch='pp-tiny'` without `regions_per_side`" in TEXT
    backbone.update(type='mmsparse.DAT', arch='pp-tiny')
    del backbone['regions_per_side'], backbone['norm_eval']

    with torch.device('meta'):
        model = build_model(cfg)

    assert [x.conv.in_channels for x in model.neck.lateral_convs] == [128, 256, 512]
    widths = model.backbone.arch.embed_dims
    assert widths[1:] == (128, 256, 512)


def test_masks_train_with_the_changes_of_the_recipe(clone, monkeypatch):
    monkeypatch.chdir(clone)
    boxes, changes = code(BOXES)
    for old, new in (
        ('mmdet::atss/atss_r50_fpn_1x', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x'),
        ('    bbox_head=dict(num_classes=3),\n', ''),
    ):
        assert boxes.count(old) == 1
        boxes = boxes.replace(old, new)
    Path('masks.py').write_text(boxes)
    Path('recipe.py').write_text(f"_base_ = 'masks.py'\n{changes}")
    channels = {'model.neck.in_channels': [32, 64, 128, 256]}  # of nano
    cfg = read_config('recipe.py', NANO | channels)
    check_data(cfg, cfg.default_scope)
    batch = first_batch(cfg, images=1)

    losses = train(build(cfg), cfg, 1, batch)

    assert np.isfinite(losses).all()
    assert len(batch['data_samples'][0].gt_instances.masks) > 1


def test_only_layers_with_classes_differ_from_the_checkpoint(clone, monkeypatch):
    monkeypatch.chdir(clone)
    name = 'configs/focus_detr/focus-detr_r50_8xb2-12e_coco.py'
    with torch.device('meta'):
        coco, mine = (
            build_model(read_config(name, {'model.bbox_head.num_classes': classes}))
            for classes in (80, 3)
        )
    shapes = {key: x.shape for key, x in coco.state_dict().items()}

    differ = {k for k, x in mine.state_dict().items() if shapes.pop(k) != x.shape}

    assert not shapes
    assert all(re.search(r'cls_branches|label_embedding', key) for key in differ)


@pytest.mark.parametrize(('changes', 'frozen'), [({}, 2), ({'frozen_stages': 4}, 4)])
def test_frozen_stages_have_no_gradients(changes, frozen, recipe):
    changes = {f'model.backbone.{key}': value for key, value in changes.items()}
    cfg = recipe('Freeze stages', **changes)

    backbone = build(cfg).backbone.train()

    for i, parts in enumerate(zip(backbone.downsamples, backbone.stages, strict=True)):
        flags = {x.requires_grad for part in parts for x in part.parameters()}
        assert flags == {i >= frozen}
    norms = [x for x in backbone.modules() if isinstance(x, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


def test_learning_rates_fall_from_the_head_to_the_stem(recipe):
    cfg = recipe('Decay the learning rate by layer')
    model = build(cfg)

    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups

    blocks = sum(model.backbone.arch.depths)
    rates = sorted({group['lr'] for group in groups}, reverse=True)
    assert rates == pytest.approx([1e-4 * 0.8**i for i in range(blocks + 2)])


TTA = 'Test-time augmentation'


def augmented(cfg):
    """Return model, augmented images, and the merged predictions of two images."""
    module = build(cfg).eval()
    use_tta(cfg, 'tta_pipeline')
    batch = first_batch(cfg, 'test')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(dict(**cfg.tta_model, module=module)).eval()
    return module, batch, model.test_step(batch)


def sides(batch):
    return [image.shape[-1] for image, _ in batch['inputs']]


def test_boxes_of_all_scales_and_flips_are_merged(recipe):
    cfg = recipe(TTA, 0, **{'model.test_cfg.score_thr': 0.0})
    scales = cfg.tta_pipeline[1].transforms[0]
    assert [x.scale for x in scales] == [(1333, side) for side in (640, 800, 960)]
    for side, step in zip((96, 128, 160), scales, strict=True):
        step.scale = (side, side)

    module, batch, merged = augmented(cfg)

    assert sides(batch) == [96, 96, 128, 128, 160, 160]
    with torch.no_grad():
        data = dict(inputs=batch['inputs'][2], data_samples=batch['data_samples'][2])
        alone = module.test_step(data)
    for sample, one in zip(merged, alone, strict=True):
        assert 0 < len(sample.pred_instances) <= 100
        boxes = sample.pred_instances.bboxes
        assert boxes.min() >= 0 and boxes.max() <= 128
        assert sample.pred_instances.scores.max() >= one.pred_instances.scores.max()


def test_probabilities_of_pixels_are_averaged(recipe):
    _, batch, merged = augmented(recipe(TTA, 1))

    assert sides(batch) == [128, 128, 160, 160, 192, 192]
    assert merged[0].pred_sem_seg.shape == merged[0].gt_sem_seg.shape == (128, 128)


def test_scores_of_images_are_averaged(recipe):
    module, batch, merged = augmented(recipe(TTA, 2))

    assert sides(batch) == [64, 64, 80, 80]
    with torch.no_grad():
        scores = [
            torch.stack([x.pred_score for x in module.test_step(dict(inputs=images))])
            for images in batch['inputs']
        ]
    expected = torch.stack(scores).mean(0)
    torch.testing.assert_close(torch.stack([x.pred_score for x in merged]), expected)


def test_the_confusion_matrix_of_a_detector_is_written(recipe):
    cfg = recipe('Confusion matrix', **{'model.test_cfg.score_thr': 0.0})
    cfg.test_evaluator[1].score_thr = 0.0
    model, batch = build(cfg).eval(), first_batch(cfg, 'test')
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = cfg.metainfo

    with torch.no_grad():
        evaluator.process(model.test_step(batch), batch)
    metrics = evaluator.evaluate(2)

    assert {'coco/bbox_mAP', 'confusion_matrix/correct'} <= metrics.keys()
    assert Path('work_dirs/confusion.png').is_file()
    written = json.loads(Path('work_dirs/confusion.json').read_text())
    assert written['classes'] == [*PETS, 'background']
    boxes = sum(len(x.gt_instances) for x in batch['data_samples'])
    assert sum(map(sum, written['counts'][:3])) == boxes


def log(path, *values, metric='coco/bbox_mAP'):
    """Write a log of one iteration and one evaluation per epoch."""
    path.mkdir(parents=True)
    lines = [
        line
        for epoch, value in enumerate(values, start=1)
        for line in (
            dict(lr=0.1, loss=1 / epoch, time=1.0, epoch=epoch, iter=epoch, step=epoch),
            {metric: value, 'step': epoch},
        )
    ]
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (path / 'scalars.json').write_text(text)


@pytest.mark.parametrize(
    ('key', 'metric'), [('loss', 'mIoU'), ('coco/bbox_mAP', 'coco/bbox_mAP')]
)
def test_learning_curves_are_plotted(key, metric, run_host, tmp_path):
    for i in range(2):
        log(tmp_path / f'work_dirs/run_{i}/now/vis_data', 0.1, 0.2, metric=metric)
    (line,) = code('Learning curves', '')
    *command, pattern, _, _, _, out = shlex.split(line)
    assert ' '.join(command) == 'mim run mmpretrain analyze_logs plot_curve'
    logs = sorted(tmp_path.glob(pattern))

    done = run_host(
        'mmpretrain',
        'analysis_tools/analyze_logs.py',
        *('plot_curve', *logs, '--keys', key, '--out', out),
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert len(logs) == 2
    with Image.open(tmp_path / out) as image:
        assert min(image.size) > 300


def test_tensorboard_is_a_second_back_end(recipe):
    cfg = recipe('Learning curves')

    types = [x.type for x in cfg.visualizer.vis_backends]

    assert types == ['LocalVisBackend', 'TensorboardVisBackend']
    assert cfg.visualizer.type == 'DetLocalVisualizer'


VOC = (
    '<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin>'
    '<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
)


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run a command for conversion in this process; return what it prints."""
    main = runpy.run_path(str(ROOT / 'tools/convert_annotations.py'))['main']

    def run(line):
        monkeypatch.setattr(sys, 'argv', shlex.split(line.removeprefix('python ')))
        assert main() == 0
        return capsys.readouterr().out

    return run


def test_the_conversions_run(convert, tmp_path, monkeypatch):
    shape = dict(label='cat', points=[[0, 0], [9, 0], [9, 9]], shape_type='polygon')
    files = {
        'VOC/Annotations/a.xml': VOC.format('cat'),
        'VOC/Annotations/b.xml': VOC.format('dog'),
        'VOC/ImageSets/Main/train.txt': 'a\n',
        'VOC/ImageSets/Main/val.txt': 'b\n',
        'labels/train/a.txt': '1 0.5 0.5 0.5 0.5\n',
        'data.yaml': 'names: [cat, dog]',
        'labelme/train/a.json': json.dumps(dict(shapes=[shape])),
        'labelme/val/b.json': json.dumps(dict(shapes=[shape])),
        'VOC/JPEGImages/a.jpg': None,
        'VOC/JPEGImages/b.jpg': None,
        'images/train/a.jpg': None,
        'labelme/train/a.jpg': None,
        'labelme/val/b.jpg': None,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new('RGB', (20, 20)).save(tmp_path / name)
        else:
            (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    (block,) = code('Convert VOC, YOLO and LabelMe', '')

    for line in block.splitlines():
        out = Path(shlex.split(line)[4])
        out.unlink(missing_ok=True)  # two lines write train.json
        assert '1 images, 1 objects' in convert(line)
        assert len(json.loads(out.read_text())['annotations']) == 1


@pytest.fixture
def stubbed(tmp_path):
    """Run a shell block with a stub for python; return the commands."""

    def run(block, cwd):
        stub = tmp_path / 'bin' / 'python'
        stub.parent.mkdir()
        stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/commands\n')
        stub.chmod(0o755)
        subprocess.run(
            ['bash', '-euo', 'pipefail', '-c', f'PATH={stub.parent}:$PATH\n{block}'],
            cwd=cwd,
            check=True,
        )
        return (tmp_path / 'commands').read_text().splitlines()

    return run


def training_config(line, monkeypatch):
    """Read the config of a training command with its options."""
    monkeypatch.setattr(sys, 'argv', shlex.split(line))
    args = runpy.run_path(str(ROOT / 'tools/train.py'))['parse_args']()
    return args.work_dir, read_config(args.config, args.cfg_options)


def test_a_sweep_trains_with_each_value_and_prints_the_best(
    clone, stubbed, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(clone)
    (block,) = code('Compare hyperparameters', '')

    runs = [training_config(line, monkeypatch) for line in stubbed(block, clone)]

    assert [name for name, _ in runs] == [
        f'work_dirs/sweep/lr_{lr}' for lr in ('3e-5', '1e-4', '3e-4')
    ]
    assert [cfg.optim_wrapper.optimizer.lr for _, cfg in runs] == [3e-5, 1e-4, 3e-4]
    assert {cfg.train_cfg.max_epochs for _, cfg in runs} == {3}
    assert {cfg.randomness.seed for _, cfg in runs} == {0}

    monkeypatch.chdir(tmp_path)
    log(tmp_path / 'work_dirs/sweep/lr_1e-4/now/vis_data', 0.1, 0.3, 0.2)
    log(tmp_path / 'work_dirs/sweep/lr_3e-4/now/vis_data', 0.1)
    (program,) = code('Compare hyperparameters')
    exec(program)
    assert capsys.readouterr().out == 'lr_1e-4 0.3\nlr_3e-4 0.1\n'


def test_cross_validation_uses_each_image_once(
    clone, stubbed, convert, monkeypatch, tmp_path
):
    shutil.copytree(clone / 'data/mine/train', tmp_path / 'data/mine/images')
    (block,) = code('Cross-validation', '')
    lines = stubbed(block, tmp_path)
    monkeypatch.chdir(tmp_path)

    folds = [set(Path(f'fold.{k}').read_text().split()) for k in range(5)]
    images = {path.name for path in Path('data/mine/images').iterdir()}
    assert set.union(*folds) == images
    assert sum(map(len, folds)) == len(images)
    for k, fold in enumerate(folds):
        assert set(Path(f'rest.{k}').read_text().split()) == images - fold

    Path('data/mine/labels').mkdir()
    for name in images:
        label = Path('data/mine/labels', name).with_suffix('.txt')
        label.write_text('0 0.5 0.5 0.5 0.5\n')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    shutil.copy(clone / 'my_config.py', tmp_path)
    for line in lines[:2]:
        convert(line)
    name, cfg = training_config(lines[2], monkeypatch)
    check_data(cfg, 'mmdet', ('train_dataloader', 'val_dataloader'))
    assert name == 'work_dirs/fold_0'
    with DefaultScope.overwrite_default_scope('mmdet'):
        train_set, val_set = (
            DATASETS.build(cfg[f'{x}_dataloader'].dataset) for x in ('train', 'val')
        )
    used = {Path(x.get_data_info(0)['img_path']).name for x in (train_set, val_set)}
    assert len(train_set) + len(val_set) == len(images)
    assert len(used & folds[0]) == 1
    assert cfg.val_evaluator.ann_file == 'data/mine/annotations/fold.0.json'


def commands():
    """The commands of mmsparse on the page, one a line."""
    text = re.sub(r'\\\n +', '', TEXT)
    return re.findall(r'^ *python (tools/.*)$', text, re.MULTILINE)


@pytest.mark.parametrize('line', commands())
def test_options_of_commands_exist(line, monkeypatch):
    tool, *rest = shlex.split(re.sub(r'\$\w+', '1', line))
    monkeypatch.setattr(sys, 'argv', [tool, *rest])
    runpy.run_path(str(ROOT / tool))['parse_args']()


GRAY = 'Gray and multispectral images'


@pytest.mark.parametrize('index', range(3), ids=['mmdet', 'mmseg', 'mmpretrain'])
def test_gray_images_train(index, recipe):
    cfg = recipe(GRAY, index)
    batch = first_batch(cfg)

    losses = train(build(cfg), cfg, 1, batch)

    assert {x.shape[0] for x in batch['inputs']} == {1}
    assert np.isfinite(losses).all()
    assert first_batch(cfg, 'val')['inputs'][0].shape[0] == 1


def test_images_of_six_channels_train(recipe, monkeypatch):
    """tifffile is not among the dependencies: a stub repeats a gray image."""

    def imread(file):
        gray = np.asarray(Image.open(file).convert('L'))
        return np.stack([gray * np.uint16(20 * i) for i in range(1, 7)], -1)

    monkeypatch.setattr(mmcv.image.io, 'tifffile', SimpleNamespace(imread=imread))
    cfg = recipe(GRAY, 3)
    batch = first_batch(cfg)

    losses = train(build(cfg), cfg, 1, batch)

    assert {x.shape for x in batch['inputs']} == {(6, 128, 128)}
    means = batch['inputs'][0].mean((1, 2))
    assert means.diff().min() > 0  # normalized, not only scaled to 8 bits
    assert np.isfinite(losses).all()


IMBALANCE = 'Class imbalance'


def test_images_of_rare_classes_are_repeated(recipe):
    path = Path('data/mine/annotations/train.json')
    coco = json.loads(path.read_text())
    rare = coco['annotations'][0]['image_id']
    for annotation in coco['annotations']:
        annotation['category_id'] = 3 if annotation['image_id'] == rare else 1
    path.with_name('rare.json').write_text(json.dumps(coco))
    Path('recipe.py').write_text(code(IMBALANCE)[0])
    ann_file = {'train_dataloader.dataset.dataset.ann_file': 'annotations/rare.json'}
    cfg = read_config('recipe.py', ann_file)

    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)

    images = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]
    assert {i: images.count(i) for i in images} == {
        x['id']: 1 + (x['id'] == rare) for x in coco['images']
    }


def test_classes_of_a_segmentor_are_weighted(recipe):
    model = build(recipe(IMBALANCE, 1))

    assert model.decode_head.loss_decode.class_weight == [0.5, *[1.0] * 10]
    assert model.decode_head.num_classes == 11


def test_small_objects_get_a_finer_feature_map(recipe):
    channels = {'model.neck.in_channels': [32, 64, 128, 256]}  # of nano
    cfg = recipe('Small objects', **channels)
    assert cfg.model.backbone.out_indices == (0, 1, 2, 3)
    model = build(cfg)

    losses = train(model, cfg, 1, first_batch(cfg))

    maps = model.extract_feat(torch.rand(1, 3, 128, 128))
    assert [x.shape[-1] for x in maps] == [32, 16, 8, 4, 2]
    anchors = model.bbox_head.prior_generator.base_anchors[0]
    assert (anchors[:, 2:] - anchors[:, :2]).tolist() == [[32.0, 32.0]]
    assert np.isfinite(losses).all()


STOP = 'Stop early, average weights'


@pytest.mark.parametrize('monitor', ['coco/bbox_mAP', 'mIoU', 'accuracy/top1'])
def test_larger_metrics_are_better(monitor, recipe):
    assert f'`{monitor}`' in SECTIONS[STOP] or f"'{monitor}'" in SECTIONS[STOP]
    settings = dict(recipe(STOP).custom_hooks[-2], monitor=monitor)

    hook = HOOKS.build(settings)

    assert type(hook) is EarlyStoppingHook
    assert hook.rule == 'greater'


def test_a_training_stops_early_with_averaged_weights(recipe, clone, run_tool):
    stop, average = recipe(STOP).custom_hooks[-2:]
    cfg = read_config('configs/dat/dat-nano_1xb32-9e_digits.py')
    stop.update(monitor='accuracy/top1', patience=1, min_delta=100.0)
    cfg.custom_hooks += [stop, average]
    cfg.train_dataloader.dataset.indices = cfg.val_dataloader.dataset.indices = 2
    cfg.train_cfg.val_interval = 1
    cfg.dump('stop.py')

    run_tool('train.py', 'stop.py', cwd=clone)

    assert Path('work_dirs/stop/last_checkpoint').read_text().endswith('epoch_2.pth')
    saved = torch.load('work_dirs/stop/epoch_2.pth', weights_only=True)
    averaged, trained = saved['state_dict'], saved['ema_state_dict']
    key = 'backbone.stages.0.0.mlp.fc1.weight'
    assert not torch.equal(averaged[key], trained[f'module.{key}'])
