"""Types and arguments of everything that a config names; each mistake is one line."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmsparse.apis import register_host
from mmsparse.apis.config import read_file
from mmsparse.checks import check_config
from mmsparse.checks.keywords import check_keywords
from mmsparse.checks.optimizer import check_optimizer
from mmsparse.checks.signatures import parameters
from mmsparse.errors import UsageError

CONFIGS = Path(__file__).parents[2] / 'configs'
# A config of each library, and mistakes in it: options, and the start of the message.
CONFIG = {
    'mmpretrain': 'biformer/biformer-nano_1xb32-9e_digits.py',
    'mmdet': 'biformer/atss_biformer-pico_1xb8-6e_digits.py',
    'mmseg': 'biformer/upernet_biformer-nano_1xb8-1600i_digits.py',
}
MISTAKES = [
    (
        'mmpretrain',
        {'train_dataloader.dataset.split': 'train'},
        "train_dataloader.dataset.split='train' is not an argument "
        'of CustomDataset; it '
        'takes ann_file, classes, data_prefix, ',
    ),
    (
        'mmpretrain',
        {'model.backbone.topks': (1, 2, 4, None)},
        'model.backbone.topks=(1, 2, 4, None) is a setting of the architecture; write '
        "arch=dict(_delete_=True, base='nano', topks=(1, 2, 4, None)).",
    ),
    (
        'mmpretrain',
        {'model.backbone': dict(type='BiFormer', _delete_=True)},
        "model.backbone.type='BiFormer' is not known to mmpretrain; write "
        "'mmsparse.BiFormer'.",
    ),
    (
        'mmpretrain',
        {'optim_wrapper.optimizer.learning_rate': 1},
        'optim_wrapper.optimizer.learning_rate=1 is not an argument '
        'of AdamW; it takes ',
    ),
    (
        'mmpretrain',
        {'optim_wrapper.grad_clip': dict(max_norm=1)},
        "optim_wrapper.grad_clip={'max_norm': 1} is not an argument "
        'of OptimWrapper; did '
        'you mean clip_grad?',
    ),
    (
        'mmpretrain',
        {'param_scheduler.0.warmup': 5},
        'param_scheduler[0].warmup=5 is not an argument of LinearLR; it takes begin, ',
    ),
    (
        'mmpretrain',
        {'train_dataloader.batchsize': 4},
        'train_dataloader.batchsize=4 is not an argument of a data '
        'loader; did you mean '
        'batch_size?',
    ),
    (
        'mmpretrain',
        {'train_dataloader.persistent_workers': True},
        'train_dataloader.persistent_workers=True needs num_workers of at least 1; ',
    ),
    (
        'mmpretrain',
        {'train_dataloader': dict(batch_size=1, dataset={}, _delete_=True)},
        'train_dataloader needs sampler; got batch_size, dataset. For a sampler write '
        "sampler=dict(type='DefaultSampler', shuffle=True).",
    ),
    (
        'mmpretrain',
        {'val_evaluator.top_k': 1},
        'val_evaluator.top_k=1 is not an argument of Accuracy; did you mean topk?',
    ),
    (
        'mmdet',
        {'train_dataloader.dataset.pipeline.1.with_boxes': True},
        'train_dataloader.dataset.pipeline[1].with_boxes=True is not an argument of '
        'LoadAnnotations; did you mean with_bbox?',
    ),
    (
        'mmdet',
        {'train_dataloader.dataset.pipeline.1.type': 'LoadAnotations'},
        "train_dataloader.dataset.pipeline[1].type='LoadAnotations' is not known to "
        "mmdet; did you mean 'LoadAnnotations'? Otherwise import your module by ",
    ),
    (
        'mmdet',
        {'train_dataloader.dataset.annotation': 'a.json'},
        "train_dataloader.dataset.annotation='a.json' is not an "
        'argument of CocoDataset',
    ),
    (
        'mmdet',
        {'model.bbox_head.classes': 3},
        'model.bbox_head.classes=3 is not an argument of ATSSHead; did you mean '
        'num_classes?',
    ),
    (
        'mmdet',
        {'val_evaluator.classwis': True},
        'val_evaluator.classwis=True is not an argument of CocoMetric; did you mean '
        'classwise?',
    ),
    (
        'mmdet',
        {'custom_hooks.0.interval': 5},
        'custom_hooks[0].interval=5 is not an argument of SafeCheckpoints',
    ),
    (
        'mmdet',
        {'train_cfg.max_epoch': 5},
        'train_cfg.max_epoch=5 is not an argument of EpochBasedTrainLoop; did you mean '
        'max_epochs?',
    ),
    (
        'mmdet',
        {'train_dataloader.sampler.shuffles': True},
        'train_dataloader.sampler.shuffles=True is not an argument of '
        'DefaultSampler; did '
        'you mean shuffle?',
    ),
    (
        'mmdet',
        {'train_dataloader.dataset': dict(type='RepeatDataset', _delete_=True)},
        'train_dataloader.dataset: RepeatDataset needs times; got type.',
    ),
    (
        'mmseg',
        {'train_dataloader.dataset.ann_files': 'a.txt'},
        "train_dataloader.dataset.ann_files='a.txt' is not an argument of "
        'BaseSegDataset; did you mean ann_file?',
    ),
    (
        'mmseg',
        {'default_hooks.logger.intervals': 5},
        'default_hooks.logger.intervals=5 is not an argument of '
        'LoggerHook; did you mean '
        'interval?',
    ),
    (
        'mmseg',
        {'model.decode_head.pool_scale': (1, 2)},
        'model.decode_head.pool_scale=(1, 2) is not an argument of UPerHead; did you '
        'mean pool_scales?',
    ),
    (
        'mmseg',
        {'visualizer.vis_backends.0.type': 'TensorBoardVisBackend'},
        "visualizer.vis_backends[0].type='TensorBoardVisBackend' is "
        'not known to mmseg; '
        "did you mean 'TensorboardVisBackend'?",
    ),
    (
        'mmpretrain',
        {'train_cfg.max_epoch': 5},
        'train_cfg.max_epoch=5 is not an argument of EpochBasedTrainLoop; did you mean '
        'max_epochs?',
    ),
    (
        'mmpretrain',
        {'train_cfg': dict(max_epochs=5, _delete_=True)},
        "train_cfg needs type='EpochBasedTrainLoop' or by_epoch; got max_epochs.",
    ),
    (
        'mmpretrain',
        {'val_cfg.fp61': True},
        'val_cfg.fp61=True is not an argument of ValLoop; did you mean fp16?',
    ),
    (
        'mmpretrain',
        {'optim_wrapper.optimizer': dict(lr=1, _delete_=True)},
        'optim_wrapper.optimizer needs type; got lr.',
    ),
    (
        'mmpretrain',
        {'default_hooks.checkpoints': dict(interval=1)},
        'default_hooks.checkpoints needs type; got interval.',
    ),
    (
        'mmpretrain',
        {'model.backbone': dict(arch='nano', _delete_=True)},
        'model.backbone needs type; got arch.',
    ),
    (
        'mmpretrain',
        {'default_hooks.checkpoint.max_keep_ckpt': 1},
        'default_hooks.checkpoint.max_keep_ckpt=1 is not an argument of '
        'CheckpointHook; did you mean max_keep_ckpts?',
    ),
    (
        'mmdet',
        {'custom_hooks.0': dict(type='EMAHook', momentm=1e-4, _delete_=True)},
        'custom_hooks[0].momentm=0.0001 is not an argument of EMAHook; did you mean '
        'momentum?',
    ),
    (
        'mmpretrain',
        {'optim_wrapper.optimizer.lr': '1e-4'},
        "optim_wrapper.optimizer.lr='1e-4' must be a number, not a text in quotes; "
        'YAML needs a point, 1.0e-4.',
    ),
    (
        'mmpretrain',
        {'model.head.num_classes': '3'},
        "model.head.num_classes='3' must be a number, not a text in quotes.",
    ),
    (
        'mmpretrain',
        {'optim_wrapper.constructor': 'DefaultOptimWraperConstructor'},
        "optim_wrapper.constructor='DefaultOptimWraperConstructor' is not known to "
        "mmpretrain; did you mean 'DefaultOptimWrapperConstructor'?",
    ),
    (
        'mmpretrain',
        {'optim_wrapper.paramwise_cfg': dict(norm_decay_mul=0.0)},
        'optim_wrapper.paramwise_cfg.norm_decay_mul=0.0 has no effect; did you mean '
        'norm_decay_mult?',
    ),
    (
        'mmpretrain',
        {'optim_wrapper.paramwise_cfg': dict(custom_keys=dict(a=dict(lr_mul=0.1)))},
        "optim_wrapper.paramwise_cfg.custom_keys['a'].lr_mul=0.1 has no effect; did "
        'you mean lr_mult?',
    ),
    (
        'mmpretrain',
        {'optim_wrapper.clip_grad': 1.0},
        'optim_wrapper.clip_grad=1.0 must be a dict; write '
        'clip_grad=dict(max_norm=1.0).',
    ),
    (
        'mmpretrain',
        {'optim_wrapper.clip_grad.max_nrom': 1.0},
        'optim_wrapper.clip_grad.max_nrom=1.0 is not an argument of clip_grad_norm_; '
        'did you mean max_norm?',
    ),
    (
        'mmpretrain',
        {'model.head.loss.type': 'LabelSmothLoss'},
        "model.head.loss.type='LabelSmothLoss' is not known to mmpretrain; did you "
        "mean 'LabelSmoothLoss'?",
    ),
    (
        'mmpretrain',
        {'model.train_cfg': dict(augments=[dict(type='MixUp', alpha=0.8)])},
        "model.train_cfg.augments[0].type='MixUp' is not known to mmpretrain; did you "
        "mean 'Mixup'?",
    ),
    (
        'mmpretrain',
        {'model.backbone.init_cfg': dict(type='Pretrained', checkpoints='a')},
        "model.backbone.init_cfg.checkpoints='a' is not an argument of PretrainedInit; "
        'did you mean checkpoint?',
    ),
    (
        'mmpretrain',
        {'model.backbone.type': 'mmsparse.BiFomer'},
        "model.backbone.type='mmsparse.BiFomer' is not known to mmpretrain; did you "
        "mean 'mmsparse.BiFormer'?",
    ),
    (
        'mmpretrain',
        {'tta_model': dict(type='AverageClsScoreTA')},
        "tta_model.type='AverageClsScoreTA' is not known to mmpretrain; did you mean ",
    ),
    (
        'mmdet',
        {'model.train_cfg.assigner.topks': 9},
        'model.train_cfg.assigner.topks=9 is not an argument of ATSSAssigner; did you '
        'mean topk?',
    ),
    (
        'mmdet',
        {'model.pretrained': 'open-mmlab://resnet50'},
        "model.pretrained='open-mmlab://resnet50' is a setting of OpenMMLab 1.x; set "
        "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...).",
    ),
    (
        'mmdet',
        {'model.bbox_head.anchor_generator.scale': [1]},
        'model.bbox_head.anchor_generator.scale=[1] is not an argument of '
        'AnchorGenerator; did you mean scales?',
    ),
    (
        'mmdet',
        {'model.data_preprocessor.pad_size_divsor': 32},
        'model.data_preprocessor.pad_size_divsor=32 is not an argument of '
        'DetDataPreprocessor; did you mean pad_size_divisor?',
    ),
    (
        'mmseg',
        {'model.decode_head.loss_decode.weight': 1},
        'model.decode_head.loss_decode.weight=1 is not an argument of '
        'CrossEntropyLoss; did you mean loss_weight?',
    ),
]


@pytest.fixture(scope='module')
def configs():
    for host in CONFIG:
        register_host(host)
    return {host: read_file(str(CONFIGS / path)) for host, path in CONFIG.items()}


@pytest.mark.parametrize(
    ('host', 'options', 'message'), MISTAKES, ids=[str([*x[1]][0]) for x in MISTAKES]
)
def test_a_mistake_is_named_with_its_path(configs, host, options, message):
    cfg = Config(configs[host].to_dict())
    cfg.merge_from_dict(options)

    with pytest.raises(UsageError, match=f'^{re.escape(message)}') as info:
        check_keywords(cfg, host)
        check_optimizer(cfg, host)
    assert '\n' not in str(info.value)


@pytest.mark.parametrize('host', CONFIG)
def test_a_right_config_passes_and_stays_as_it_is(configs, host):
    before = configs[host].pretty_text

    check_keywords(configs[host], host)

    assert configs[host].pretty_text == before


def test_the_data_loader_of_a_retriever_is_no_part_of_its_model(configs):
    cfg = Config(configs['mmpretrain'].to_dict())
    backbone, head = cfg.model.backbone, cfg.model.head
    retriever = dict(type='ImageToImageRetriever', image_encoder=backbone, head=head)
    cfg.model = dict(retriever, prototype=dict(cfg.train_dataloader))

    check_keywords(cfg, 'mmpretrain')


def test_inference_does_not_need_a_right_training(configs):
    cfg = Config(configs['mmdet'].to_dict())
    cfg.merge_from_dict({'optim_wrapper.optimizer.learning_rate': 1})

    check_config(cfg, 'mmdet', training=False)
    with pytest.raises(UsageError, match=r'optimizer\.learning_rate'):
        check_config(cfg, 'mmdet')


def test_transforms_in_transforms_are_checked_but_not_those_of_albumentations(configs):
    cfg = Config(configs['mmdet'].to_dict())
    flip = dict(type='RandomFlip', probability=0.5)
    cfg.train_dataloader.dataset.pipeline.append(
        dict(type='RandomApply', transforms=[flip])
    )

    with pytest.raises(
        UsageError, match=r'pipeline\[3\]\.transforms\[0\]\.probability'
    ):
        check_keywords(cfg, 'mmdet')

    albu = dict(type='Albu', transforms=[dict(type='RandomBrightness', limit=1)])
    cfg.train_dataloader.dataset.pipeline[-1] = albu
    check_keywords(cfg, 'mmdet')


class Base:
    def __init__(self, a, b=1):
        self.sum = a + b


class Forwards(Base):
    def __init__(self, c=2, **kwargs):
        self.c = c
        super().__init__(**kwargs)


class Uses(Base):
    def __init__(self, **kwargs):
        self.d = kwargs.pop('d', 0)
        super().__init__(**kwargs)


class Skips(Forwards):
    def __init__(self, **kwargs):
        super(Forwards, self).__init__(**kwargs)


def test_forwarded_keywords_are_those_of_the_parent():
    assert parameters(Forwards).keys() == {'a', 'b', 'c'}


@pytest.mark.parametrize('cls', [Uses, Skips])
def test_keywords_that_are_used_otherwise_are_unknown(cls):
    assert parameters(cls) is None


@pytest.mark.parametrize(
    'options',
    [
        {'optim_wrapper.paramwise_cfg': dict(custom_keys=dict(bn=dict(fix_lr=True)))},
        {'custom_hooks.0': dict(type='EMAHook', momentum=1e-4, _delete_=True)},
        {'train_cfg': dict(by_epoch=False, max_iters=5, _delete_=True)},
        {'val_cfg': dict(type='ValLoop', fp16=True)},
    ],
    ids=['other options of parameters', 'EMA', 'by iterations', 'type'],
)
def test_right_settings_pass(configs, options):
    cfg = Config(configs['mmpretrain'].to_dict())
    cfg.merge_from_dict(options)

    check_keywords(cfg, 'mmpretrain')
    check_optimizer(cfg, 'mmpretrain')


def test_policies_are_checked_as_transforms(configs):
    cfg = Config(configs['mmpretrain'].to_dict())
    policy = dict(type='Rotate', magnitude_key='angle', magnitude_range=(0, 30))
    augment = dict(
        type='RandAugment', policies=[policy], num_policies=1, magnitude_level=5
    )
    cfg.train_dataloader.dataset.pipeline.insert(1, augment)
    check_keywords(cfg, 'mmpretrain')

    policy['type'] = 'Rotat'
    with pytest.raises(UsageError, match=r"pipeline\[1\]\.policies\[0\]\.type='Rotat'"):
        check_keywords(cfg, 'mmpretrain')
