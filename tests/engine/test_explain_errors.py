"""Errors of training and evaluation name the setting to change."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from mmdet.evaluation import CocoMetric, VOCMetric
from mmdet.models.losses import CrossEntropyLoss, FocalLoss
from mmdet.structures import DetDataSample
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from mmpretrain.evaluation import Accuracy, SingleLabelMetric
from mmpretrain.models.losses import LabelSmoothLoss
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from mmseg.evaluation import IoUMetric
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from tiny_detectors import build_host_detector, make_images
from torch import nn
from torch.utils.data import DataLoader, default_collate

from mmsparse.engine.explanations import explain
from mmsparse.engine.hooks.stop_at_nan import NotFiniteError
from mmsparse.errors import UsageError

ROOT = Path(__file__).parents[2]
SCORES = torch.zeros(1, 2)


class Norm(nn.Sequential):
    """A model that normalizes one value per channel and image."""

    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2))


def pad_segments(training):
    images = [torch.zeros(3, side, side) for side in (4, 6)]
    samples = [SegDataSample(), SegDataSample()]
    SegDataPreProcessor()(dict(inputs=images, data_samples=samples), training)


def intersect():
    pred, label = torch.zeros(6, 6).long(), torch.zeros(4, 4).long()
    IoUMetric.intersect_and_union(pred, label, num_classes=2, ignore_index=255)


def evaluate_segments():
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=('sky',))
    metric.process({}, [dict(pred_sem_seg=dict(data=SCORES))])


def annotate(folder, *ids):
    path = folder / 'val.json'
    categories = [dict(id=1, name='cat')]
    boxes = [
        dict(id=i, image_id=i, category_id=1, bbox=[0, 0, 4, 4], area=16, iscrowd=0)
        for i in ids
    ]
    images = [dict(id=i, width=8, height=8, file_name=f'{i}.jpg') for i in ids]
    text = json.dumps(dict(images=images, annotations=boxes, categories=categories))
    path.write_text(text)
    return str(path)


def evaluate_boxes(folder, image=1, label=0, metric='bbox', **keys):
    metric = CocoMetric(annotate(folder, 1), metric=metric)
    metric.dataset_meta = dict(classes=('cat',))
    found = dict(
        bboxes=torch.zeros(1, 4), scores=torch.ones(1), labels=torch.tensor([label])
    )
    sample = dict(img_id=image, ori_shape=(8, 8), pred_instances=found)
    metric.process({}, [{k: v for k, v in sample.items() if k not in keys}])
    metric.evaluate(1)


def predict_boxes(meta_keys):
    model = build_host_detector('retinanet/retinanet_r50_fpn_1x_coco.py').eval()
    inputs, (sample,) = make_images([(64, 64)])
    meta = {k: v for k, v in sample.metainfo.items() if k in meta_keys}
    model(inputs, [DetDataSample(metainfo=meta)], mode='predict')


def train_without(part, name):
    model = build_host_detector(name)
    inputs, samples = make_images([(64, 64)])
    samples[0].set_metainfo(dict(pad_shape=(64, 64)))
    if part == 'boxes':
        samples[0].gt_instances = InstanceData()
    model(inputs, samples, mode='loss')


def train_dino_of_few_tokens():
    model = build_host_detector('dino/dino-4scale_r50_8xb2-12e_coco.py')
    model.num_queries = 900
    model(*make_images([(64, 64)]), mode='loss')


def save_best():
    hook = CheckpointHook(save_best='accuracy/top5', rule='greater')
    hook._save_best_checkpoint(SimpleNamespace(epoch=0, iter=0), {'accuracy/top1': 1})


def fail(message):
    raise RuntimeError(message)


# Function that fails, stage, and parts of the message.
CASES = {
    'one value': (
        lambda _: Norm()(torch.zeros(1, 2, 1, 1)),
        'train',
        r'^1: Expected more than 1 value .*: BatchNorm cannot normalize .*drop_last',
    ),
    'sizes, classification': (
        lambda _: default_collate([torch.zeros(3, 4, 4), torch.zeros(3, 4, 6)]),
        'train',
        r'equal size.*at the end of train_dataloader\.dataset\.pipeline',
    ),
    'sizes, segmentation': (
        lambda _: pad_segments(training=False),
        'val',
        r'should be the same: set val_dataloader\.batch_size=1, or',
    ),
    'sizes, training of segmentation': (
        lambda _: pad_segments(training=True),
        'train',
        r'set model\.data_preprocessor\.size=\(height, width\)',
    ),
    'labels, focal loss': (
        lambda _: FocalLoss(use_sigmoid=True)(SCORES, torch.tensor([3])),
        'train',
        'Class values.*: set num_classes of every head',
    ),
    'labels, cross entropy': (
        lambda _: CrossEntropyLoss()(SCORES, torch.tensor([3])),
        'train',
        'Target 3 is out of bounds: set num_classes of every head',
    ),
    'labels, label smoothing': (
        lambda _: LabelSmoothLoss(0.1, num_classes=2)(SCORES, torch.tensor([3])),
        'train',
        'Class Index.*: set num_classes of every head',
    ),
    'labels, metric': (
        lambda _: SingleLabelMetric.calculate([0], [3], num_classes=2),
        'val',
        'Class values.*: set num_classes of every head',
    ),
    'more classes than names': (
        lambda folder: evaluate_boxes(folder, label=1),
        'val',
        r'IndexError: .*larger than the number of names in val_dataloader',
    ),
    'other annotations': (
        lambda folder: evaluate_boxes(folder, image=2),
        'test',
        r'current coco set: set test_evaluator\.ann_file to the ann_file of test_data',
    ),
    'masks': (
        lambda folder: evaluate_boxes(folder, metric='segm'),
        'val',
        r"segm is not in results.*set val_evaluator\.metric='bbox'",
    ),
    'resized label maps': (
        lambda _: intersect(),
        'val',
        'move LoadAnnotations behind Resize in val_dataloader',
    ),
    'no label map': (
        lambda _: evaluate_segments(),
        'val',
        r'add LoadAnnotations to val_dataloader\.dataset\.pipeline',
    ),
    'no label map in training': (
        lambda _: SegDataSample().gt_sem_seg,
        'train',
        r'add LoadAnnotations to train_dataloader\.dataset\.pipeline',
    ),
    'no boxes': (
        lambda _: train_without('boxes', 'retinanet/retinanet_r50_fpn_1x_coco.py'),
        'train',
        r'bbox_head: .*: add LoadAnnotations to train_dataloader\.dataset\.pipeline',
    ),
    'no masks': (
        lambda _: train_without('masks', 'solov2/solov2_r50_fpn_1x_coco.py'),
        'train',
        'mask_head: .*set with_mask=True of LoadAnnotations in train_dataloader',
    ),
    'no boxes in VOC': (
        lambda _: VOCMetric().process(
            {}, [dict(gt_instances={}, ignored_instances={})]
        ),
        'val',
        'add LoadAnnotations to val_dataloader',
    ),
    'no class': (
        lambda _: Accuracy().process({}, [dict(pred_score=SCORES)]),
        'val',
        r"'gt_label': images of val_dataloader\.dataset have no labels",
    ),
    'no class in training': (
        lambda _: DataSample().gt_label,
        'train',
        "'gt_label': images of train_dataloader",
    ),
    'no image id': (
        lambda folder: evaluate_boxes(folder, img_id=False),
        'val',
        "'img_id': PackDetInputs of val_dataloader.*meta_keys=",
    ),
    'no scale factor': (
        lambda _: predict_boxes(['img_shape', 'ori_shape']),
        'val',
        'bbox_head: AssertionError: PackDetInputs of val_dataloader',
    ),
    'no image shape': (
        lambda _: DetDataSample().img_shape,
        'val',
        "no attribute 'img_shape': PackDetInputs of val_dataloader",
    ),
    'not packed': (
        lambda _: ClsDataPreprocessor()(dict(img=[SCORES])),
        'val',
        r"'inputs': end val_dataloader\.dataset\.pipeline with PackInputs",
    ),
    'top 5 of two': (
        lambda _: Accuracy.calculate(SCORES, torch.tensor([1]), topk=(5,)),
        'val',
        'Top-5.*: set topk of val_evaluator',
    ),
    'few tokens': (
        lambda _: train_dino_of_few_tokens(),
        'train',
        r'fewer tokens than model\.num_queries',
    ),
    'best checkpoint': (
        lambda _: save_best(),
        'train',
        r"top5': default_hooks\.checkpoint\.save_best is not a metric",
    ),
    'channels of a convolution': (
        lambda _: nn.Conv2d(3, 4, 1)(torch.zeros(1, 2, 4, 4)),
        'train',
        'to have 3 channels, but got 2 channels instead: set its in_channels',
    ),
    'channels of a linear layer': (
        lambda _: nn.Linear(3, 4)(torch.zeros(1, 2)),
        'train',
        r'cannot be multiplied \(1x2 and 3x4\): set its in_channels',
    ),
    'unused parameter': (
        lambda _: fail(
            'Expected to have finished reduction in the prior iteration before '
            'starting a new one.\nThis error indicates'
        ),
        'train',
        'starting a new one: .*find_unused_parameters=True',
    ),
    'killed worker': (
        lambda _: fail('DataLoader worker (pid 7) is killed by signal: Bus error. It'),
        'val',
        r'lower val_dataloader\.num_workers',
    ),
    'failed kernel': (
        lambda _: fail('CUDA error: device-side assert triggered\nCUDA kernel'),
        'train',
        'CUDA_LAUNCH_BLOCKING=1',
    ),
    'memory': (
        lambda _: fail('CUDA out of memory. Tried to allocate 2.00 GiB.'),
        'val',
        r'lower val_dataloader\.batch_size',
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_an_error_is_explained_by_a_setting(case, tmp_path):
    cause, stage, message = CASES[case]

    with pytest.raises(Exception) as info:  # noqa: PT011
        cause(tmp_path)
    explanation = explain(info.value, stage)

    assert re.search(message, explanation), explanation or info.value
    assert '\n' not in explanation


def test_an_error_of_a_worker_is_explained():
    loader = DataLoader(
        [torch.zeros(2), torch.zeros(3)], 2, num_workers=1, collate_fn=default_collate
    )

    with pytest.raises(RuntimeError) as info:
        next(iter(loader))

    assert explain(info.value, 'val').startswith(
        'RuntimeError: stack expects each tensor to be equal size, but got [2] at '
        'entry 0 and [3] at entry 1: images of a batch have different sizes; give'
    )


def test_other_errors_have_no_explanation():
    with pytest.raises(ValueError) as info:  # noqa: PT011
        int('x')

    assert explain(info.value, 'train') == ''


class Model(BaseModel):
    """Raises an error in a stage."""

    def __init__(self, stage, error):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.stage, self.error = stage, error

    def train_step(self, data, optim_wrapper):
        return self.step('train')

    def val_step(self, data):
        return self.step('val')

    def test_step(self, data):
        return self.step('test')

    def step(self, stage):
        if stage == self.stage:
            raise self.error
        return {}

    def forward(self):
        raise NotImplementedError


class Nothing(BaseMetric):
    """Evaluates nothing."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


def run(work_dir, model):
    """Train and validate, or test, a model for a step."""
    loaders = {f'{x}_dataloader': DataLoader([0]) for x in ('train', 'val', 'test')}
    runner = Runner(
        model,
        str(work_dir),
        **loaders,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        val_cfg={},
        test_cfg={},
        val_evaluator=Evaluator([Nothing()]),
        test_evaluator=Evaluator([Nothing()]),
        custom_hooks=[dict(type='mmsparse.ExplainErrors')],
        experiment_name=uuid4().hex,
    )
    return runner.test() if model.stage == 'test' else runner.train()


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
def test_an_error_in_a_loop_of_the_runner_is_explained(stage, tmp_path):
    error = AssertionError('The image size in a batch should be the same.')

    with pytest.raises(UsageError, match=rf'set {stage}_dataloader\.batch_') as info:
        run(tmp_path, Model(stage, error))

    assert info.value.__cause__ is error


@pytest.mark.parametrize(
    'error', [UsageError("KeyError: 'inputs'"), KeyError('x'), NotFiniteError('mat')]
)
@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
def test_other_errors_in_a_loop_pass_unchanged(error, stage, tmp_path):
    with pytest.raises(type(error)) as info:
        run(tmp_path, Model(stage, error))

    assert info.value is error


@pytest.mark.slow
def test_a_host_explains_an_upernet_that_gets_one_image(small_digits, run_host):
    config = ROOT / 'configs/biformer/upernet_biformer-nano_1xb8-1600i_digits.py'

    done = run_host(
        *(
            'mmseg',
            'train.py',
            config,
            '--work-dir',
            'one-image',
            '--cfg-options',
            'train_dataloader.batch_size=1',
            'runner_type=Runner',  # without the check before training
        ),
        cwd=small_digits,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        'mmsparse.errors.UsageError: decode_head.psp_modules.0.1.bn: Expected more '
        'than 1 value per channel when training, got input size torch.Size([1, 64, 1, '
        '1]): BatchNorm cannot normalize one image with one value per channel; set '
        'train_dataloader.batch_size to at least 2'
    )
