import ast
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.testing import demo_mm_inputs
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mmsparse.analysis.flops import measure
from mmsparse.apis import build_model, read_config
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.layers import DeformableAttention2d, WindowAttention2d
from mmsparse.zoo import read_index

ROOT = Path(__file__).parents[1]
METHODS = [
    path
    for path in sorted((ROOT / 'configs').rglob('*.py'))
    if '_base_' not in path.parts
]
PROJECTS = sorted((ROOT / 'projects').glob('*/configs/*.py'))
LEAVES = {path.stem: path for path in (*METHODS, *PROJECTS)}
DETECTORS = [name for name in LEAVES if re.search(r'_coco(-panoptic)?$', name)]
SEGMENTORS = [name for name in LEAVES if '_ade20k' in name]
COUNTED = (  # a backbone of each family and each head
    'fpn_dat-tiny_8xb2-80k_ade20k-512x512',
    'upernet_dat-pp-tiny_8xb2-160k_ade20k-512x512',
    'upernet_biformer-small_8xb4-160k_ade20k-512x512',
    'segformer_shunted-small_8xb2-160k_ade20k-512x512',
)
MAX_LINES = 30  # about 25 are meant
# Models with the authors' recipe, which decays norms.
AS_RELEASED = ('detr_r', 'detr_deit-', 'detr_dc5', 'panoptic-detr_r')
AS_RELEASED += ('panoptic-detr_dc5', 'panoptic-detr-frozen')
AS_RELEASED += ('deformable-detr-single-scale',)


@cache
def read(name):
    return read_config(str(LEAVES[name]))


def is_baseline(name):
    return LEAVES[name].parent.name == 'baselines'


@cache
def built(name):
    """Build the model on the meta device, without memory and initial values."""
    cfg = read(name)
    # Models of other libraries, and Swin, read values of tensors while they are built.
    reads = is_baseline(name) or cfg.model.backbone.type == 'SwinTransformer'
    device = 'cpu' if reads else 'meta'
    with pytest.MonkeyPatch.context() as patch, torch.device(device):
        for function in re.findall(r'\b[a-z]\w*_\b', ' '.join(vars(nn.init))):
            patch.setattr(nn.init, function, lambda tensor, *_, **__: tensor)
        return build_model(cfg)


@pytest.mark.parametrize('name', LEAVES)
def test_every_config_parses_and_builds_its_model(name):
    model = built(name)
    # ATSS has a replaced operator of mmsparse with any backbone.
    modules = (model.backbone if is_baseline(name) else model).modules()

    found = any(type(m).__module__.startswith('mmsparse.') for m in modules)
    assert found is not is_baseline(name)


@pytest.mark.parametrize('name', LEAVES)
def test_every_config_has_the_hooks_that_make_training_safe(name):
    hooks = [hook.type.removeprefix('mmsparse.') for hook in read(name).custom_hooks]

    expected = ['SafeCheckpoints', 'StopAtNaN', 'NameSampleFiles', 'ExplainErrors']
    assert hooks[:6] == [*expected, 'RepeatableRandomness', 'ReplaceOperators']


METAFILES = sorted(ROOT.glob('configs/*/metafile.yml'))
MODELS = {
    model['Name']: model
    for path in (*METAFILES, *sorted(ROOT.glob('projects/*/metafile.yml')))
    for model in yaml.safe_load(path.read_text())['Models']
}


def test_every_config_is_in_a_metafile_under_its_name():
    assert set(LEAVES) == set(MODELS)
    for name, model in MODELS.items():
        assert ROOT / model['Config'] == LEAVES[name]


def test_the_model_index_imports_all_metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())

    assert sorted(ROOT / path for path in index['Import']) == METAFILES


@pytest.mark.parametrize('path', METHODS, ids=lambda path: path.stem)
def test_the_metafile_has_the_task_of_the_library(path):
    entry = read_index()[path.stem]

    assert (entry.path, entry.host) == (path, read(path.stem).default_scope)


def test_every_result_has_a_source():
    for model in MODELS.values():
        for result in model.get('Results', ()):
            source = result.get('Source', '')
            assert bool(source) == bool(result['Metrics'])
            if source and not source.startswith(('paper', "authors' README")):
                assert re.match('mmsparse [0-9a-f]{7}', source)
                assert 'Training Resources' in model['Metadata']


@pytest.mark.parametrize('name', MODELS)
def test_the_metafile_has_the_number_of_parameters(name):
    parameters = sum(parameter.numel() for parameter in built(name).parameters())

    assert parameters == MODELS[name]['Metadata']['Parameters']


@pytest.mark.parametrize('name', [name for name in DETECTORS if 'mask2' not in name])
def test_the_metafile_has_epochs_and_batch_size(name):
    cfg, metadata = read(name), MODELS[name]['Metadata']

    assert metadata['Epochs'] == cfg.train_cfg.max_epochs
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert f'-{metadata["Epochs"]}e_' in name or '_1x_' in name


@pytest.mark.parametrize('name', SEGMENTORS)
def test_the_metafile_has_iterations_and_batch_size(name):
    cfg, metadata = read(name), MODELS[name]['Metadata']
    gpus, batch, thousands = re.search(r'_(\d+)xb(\d+)-(\d+)k_', name).groups()

    assert metadata['Iterations'] == cfg.train_cfg.max_iters == 1000 * int(thousands)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert metadata['Batch Size'] == int(gpus) * int(batch)
    assert cfg.train_dataloader.batch_size == int(batch)


@pytest.mark.parametrize('name', COUNTED)
def test_the_metafile_has_the_macs(name):
    total = measure(built(name), (512, 2048))[-1]

    assert total.macs == MODELS[name]['Metadata']['FLOPs']


def bases(path):
    """The files of mmsparse that a config inherits from."""
    tree = ast.parse(path.read_text())
    named = next(
        (
            ast.literal_eval(statement.value)
            for statement in tree.body
            if isinstance(statement, ast.Assign) and statement.targets[0].id == '_base_'
        ),
        [],
    )
    named = [named] if isinstance(named, str) else named
    return [(path.parent / base).resolve() for base in named if '::' not in base]


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_is_short_and_inherits_from_few_others(name):
    assert len(LEAVES[name].read_text().splitlines()) <= MAX_LINES
    ancestors, path = [], LEAVES[name]
    while parents := [p for p in bases(path) if '_base_' not in p.parts]:
        (path,) = parents
        ancestors.append(path)
    assert len(ancestors) <= 2, ancestors


@pytest.mark.parametrize('name', [*DETECTORS, *SEGMENTORS])
def test_a_dense_task_starts_from_the_classifier_of_its_backbone(name):
    backbone = read(name).model.backbone
    if backbone.type not in {f'mmsparse.{x.__name__}' for x in BACKBONES.values()}:
        return
    start = backbone.init_cfg
    assert (start.type, start.prefix) == ('Pretrained', 'backbone.')
    folder, file = start.checkpoint.split('/')
    arch = file.removesuffix('_in1k.pth')
    classifiers = [
        x for x in LEAVES if x.startswith(f'{arch}_') and x.endswith('_in1k')
    ]
    assert folder == 'checkpoints'
    assert len(classifiers) == 1
    classifier = read(classifiers[0]).model.backbone
    assert (classifier.type, classifier.arch) == (backbone.type, backbone.arch)


def multipliers(name):
    """Multipliers of learning rate and weight decay of every trainable parameter."""
    model, cfg = built(name), read(name)
    settings = cfg.optim_wrapper.optimizer
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (
            round(group['lr'] / settings.lr, 6),
            round(group['weight_decay'] / settings.weight_decay, 6),
        )
        for group in optimizer.param_groups
        for parameter in group['params']
        if parameter.requires_grad
    }


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm)
WITH_BIAS = (DeformableAttention2d, WindowAttention2d)


def norms(model):
    """Names of all parameters of norms."""
    return {
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, _ in module.named_parameters()
    }


def position_biases(model):
    """Names of DAT's position bias tables; those of neighborhoods are decayed."""
    return {
        f'{prefix}.relative_position_bias_table'
        for prefix, module in model.named_modules()
        if isinstance(module, WITH_BIAS)
    }


DETRS = [
    name
    for name in DETECTORS
    if name.startswith(
        ('deformable-detr', 'detr_', 'dino', 'focus-detr_', 'mask2former', 'panoptic')
    )
]


@pytest.mark.parametrize('name', DETRS)
def test_a_detr_has_a_lower_learning_rate_in_its_backbone_and_decays_no_norm(name):
    model = built(name)
    slow = ('sampling_offsets', 'reference_points') if 'deformable' in name else ()
    embeddings = ('query_embed', 'query_feat', 'level_embed')
    exempt = norms(model) | position_biases(model)
    if name.startswith(AS_RELEASED):
        exempt = set()

    for parameter, (lr, decay) in multipliers(name).items():
        in_backbone = parameter.startswith('backbone.')
        expected = 0.1 if in_backbone or any(x in parameter for x in slow) else 1.0
        kept = parameter in exempt or (
            'mask2former' in name
            and not in_backbone
            and any(x in parameter for x in embeddings)
        )
        assert (lr, decay) == (expected, 0.0 if kept else 1.0), parameter


def test_sparse_detr_has_the_released_learning_rates_and_decays_everything():
    for parameter, found in multipliers(
        'sparse-detr_r50_keep-30_8xb2-50e_coco'
    ).items():
        slow = parameter.startswith('backbone.') or 'sampling_offsets' in parameter
        assert found == (0.1 if slow else 1.0, 1.0), parameter


@pytest.mark.parametrize('name', SEGMENTORS)
def test_learning_rate_and_decay_of_segmentors_are_the_published_ones(name):
    of_dat, head = '_dat-' in name, name.partition('_')[0]
    model = built(name)
    # In DAT's official code all norms are called norm. Semantic FPN decays everything.
    exempt = norms(model) if of_dat else {x for x in norms(model) if 'norm' in x}
    exempt |= position_biases(model)
    by_name = of_dat or head != 'fpn'

    for parameter, (lr, decay) in multipliers(name).items():
        kept = by_name and parameter.startswith('backbone.') and parameter in exempt
        fast = head == 'segformer' and parameter.startswith('decode_head.')
        assert (lr, decay) == (10.0 if fast else 1.0, 0.0 if kept else 1.0), parameter


@pytest.mark.parametrize(
    ('name', 'norms_decay'),
    [
        ('retinanet_dat-pp-tiny_32xb2-12e_coco', False),
        ('mask-rcnn_dat-pp-small_32xb2-36e_coco', False),
        ('mask-rcnn_dat-tiny_8xb2-12e_coco', False),
        ('cascade-mask-rcnn_dat-pp-tiny_32xb2-12e_coco', False),
        ('retinanet_biformer-small_8xb2-12e_coco', True),
        ('mask-rcnn_shunted-small_8xb2-12e_coco', True),
    ],
)
def test_other_detectors_have_one_learning_rate_and_the_published_decay(
    name, norms_decay
):
    model = built(name)
    exempt = set() if norms_decay else norms(model) | position_biases(model)

    for parameter, found in multipliers(name).items():
        assert found == (1.0, 0.0 if parameter in exempt else 1.0), parameter


@pytest.mark.parametrize('arch', ['tiny', 'pp-tiny', 'base-384'])
def test_dat_classifiers_decay_neither_vectors_nor_position_biases(arch):
    (name,) = (x for x in LEAVES if x.startswith(f'dat-{arch}_') and 'in1k' in x)
    model = built(name)
    vectors = {name for name, x in model.named_parameters() if x.ndim == 1}

    for parameter, found in multipliers(name).items():
        exempt = parameter in vectors | position_biases(model)
        assert found == (1.0, 0.0 if exempt else 1.0), parameter


def test_biformer_in_mask_rcnn_decays_all_but_parameters_called_norm():
    for parameter, found in multipliers(
        'mask-rcnn_biformer-small_8xb2-12e_coco'
    ).items():
        assert found == (1.0, 0.0 if 'norm' in parameter else 1.0), parameter


def test_schedules_of_36_epochs_have_a_warm_up_and_two_drops():
    for name in DETECTORS:
        cfg = read(name)
        released = name.startswith('focus-detr_')  # without warm-up
        if cfg.train_cfg.get('max_epochs') == 36 and not released:
            warm_up, steps = cfg.param_scheduler
            assert (warm_up.end, warm_up.by_epoch) == (500, False)
            assert (steps.milestones, steps.end) == ([27, 33], 36)


@pytest.mark.parametrize('size', [(480, 640), (300, 900)], ids=str)
def test_multi_scale_augmentation_keeps_sizes_in_range(size):
    loader = read('retinanet_dat-pp-tiny_32xb2-12e_coco').train_dataloader
    with DefaultScope.overwrite_default_scope('mmdet'):
        transforms = [TRANSFORMS.build(cfg) for cfg in loader.dataset.pipeline[2:]]
    for seed in range(4):
        torch.manual_seed(seed)
        item = dict(
            img=torch.randint(255, (*size, 3)).byte().numpy(),
            img_shape=size,
            ori_shape=size,
            gt_bboxes=HorizontalBoxes(torch.tensor([[10.0, 20, 290, 280]])),
            gt_bboxes_labels=torch.tensor([3]).numpy(),
            gt_ignore_flags=torch.tensor([False]).numpy(),
        )
        for transform in transforms:
            item = transform(item)

        height, width = item['inputs'].shape[1:]
        shorter, longer = sorted((height, width))
        assert shorter <= 800
        assert longer <= 1333
        assert shorter >= 480 or longer >= 1332
        assert len(item['data_samples'].gt_instances) <= 1


SMALL = {
    'deformable-detr-refine-twostage_dat-pp-tiny_8xb2-50e_coco': (64, 128, 256),
    'detr_biformer-small_8xb2-150e_coco': (256,),
    'retinanet_shunted-small_8xb2-12e_coco': (64, 128, 256),
    'cascade-mask-rcnn_dat-pp-tiny_32xb2-12e_coco': (32, 64, 128, 256),
}


@pytest.mark.parametrize('name', SMALL)
def test_a_detector_with_a_nano_backbone_takes_a_training_step(name):
    cfg = read_config(str(LEAVES[name]))
    cfg.model.backbone.update(arch='nano', init_cfg=None, with_cp=False)
    cfg.model.neck.in_channels = list(SMALL[name])
    for coder in ('encoder', 'decoder'):
        if coder in cfg.model:
            cfg.model[coder].num_layers = 1
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 20
    if 'roi_head' in cfg.model:
        cfg.model.train_cfg.rpn_proposal.max_per_img = 20
        for head in cfg.model.roi_head.bbox_head:
            head.norm_cfg = dict(type='BN')  # SyncBN needs a GPU
    model = build_model(cfg).train()
    model.init_weights()
    with_mask = 'mask' in name
    data = demo_mm_inputs(2, [[3, 96, 128]] * 2, num_items=[2, 1], with_mask=with_mask)
    data = model.data_preprocessor(data, training=True)

    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()

    assert torch.isfinite(loss)
    for key, parameter in model.backbone.named_parameters():
        assert parameter.grad.isfinite().all(), key
