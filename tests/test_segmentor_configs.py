"""Every config for ADE20K, with a small backbone, on digits in ADE20K's layout."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from torch.nn import functional as F

from mmsparse.apis import build_model, read_config
from mmsparse.checks import check_data

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = {path.stem: path for path in CONFIGS.glob('[!_]*/*_ade20k-512x512.py')}
EVALUATED = (
    'fpn_biformer-small_8xb4-80k_ade20k-512x512',
    'upernet_dat-tiny_8xb2-160k_ade20k-512x512',
    'segformer_shunted-small_8xb2-160k_ade20k-512x512',
)
WIDTHS = [32, 64, 128, 256]
DAT_2022 = dict(
    base='tiny',
    embed_dims=WIDTHS,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    num_groups=(1, 1, 2, 4),
)


def shrink_images(pipeline):
    """Divide all sizes by 8, so that an image has 64 x 64 pixels."""
    for step in pipeline:
        if 'scale' in step:
            step.scale = tuple(side // 8 for side in step.scale)
        if 'crop_size' in step:
            step.crop_size = (64, 64)
        for steps in step.get('transforms', ()):
            shrink_images(steps)


@pytest.fixture
def small(small_digits):
    """Read a config with a small model and a few images."""

    def read(name):
        cfg = read_config(str(LEAVES[name]))
        formulation_2022 = cfg.model.backbone.arch in ('tiny', 'small', 'base')
        is_dat = cfg.model.backbone.type == 'mmsparse.DAT'
        arch = DAT_2022 if is_dat and formulation_2022 else 'nano'
        cfg.model.backbone.update(arch=arch, init_cfg=None)
        cfg.model.data_preprocessor.size = (64, 64)
        cfg.model.test_cfg.update(crop_size=(64, 64), stride=(42, 42))
        entry = cfg.model.get('neck') or cfg.model.decode_head
        entry.in_channels = WIDTHS
        if 'neck' not in cfg.model:
            cfg.model.decode_head.channels = 32
        if 'auxiliary_head' in cfg.model:
            cfg.model.auxiliary_head.in_channels = WIDTHS[2]
        for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            cfg[key].update(num_workers=0, persistent_workers=False)
            cfg[key].dataset.data_root = str(small_digits / 'data/digits/segmentation')
            cfg[key].dataset.serialize_data = False  # slower for a few images
            cfg[key].dataset.indices = 2 if key == 'train_dataloader' else 1
            shrink_images(cfg[key].dataset.pipeline)
        for key in ('tta_pipeline', 'flip_pipeline'):
            shrink_images(cfg[key])
        cfg.train_dataloader.batch_size = 2
        check_data(cfg, 'mmseg')
        return cfg

    with DefaultScope.overwrite_default_scope('mmseg'):
        yield read


def built(cfg):
    model = build_model(cfg)
    model.init_weights()
    return model


def first(loader_cfg):
    """Load the first batch."""
    return next(iter(Runner.build_dataloader(loader_cfg, seed=0)))


def evaluate(model, cfg):
    loader = Runner.build_dataloader(cfg.val_dataloader)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        evaluator.process(model.eval().test_step(batch), batch)
    return evaluator.evaluate(len(loader.dataset))


@pytest.mark.parametrize('name', LEAVES)
def test_a_training_step_and_an_evaluation_run(name, small):
    cfg = small(name)
    model = built(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: x.clone() for key, x in model.named_parameters()}

    losses = model.train().train_step(first(cfg.train_dataloader), optimizer)
    metrics = evaluate(model, cfg)

    assert all(value.isfinite().all() for value in losses.values())
    after = dict(model.named_parameters())
    changed = {key for key, x in after.items() if not torch.equal(x, before[key])}
    assert {key.partition('.')[0] for key in changed} == {
        key for key, _ in model.named_children() if key != 'data_preprocessor'
    }
    assert len(changed) > 0.7 * len(after)  # except dropped blocks
    assert metrics.keys() == {'aAcc', 'mIoU', 'mAcc'}


def augmented(model, cfg, pipeline):
    """Return the augmented first image and its merged prediction."""
    cfg.test_dataloader.dataset.pipeline = cfg[pipeline]
    batch = first(cfg.test_dataloader)
    tta = MODELS.build(dict(**cfg.tta_model, module=model))
    return batch, tta.eval().test_step(batch)[0]


@pytest.mark.parametrize('name', EVALUATED)
def test_flip_augmentation_averages_image_and_flipped_image(name, small):
    cfg = small(name)
    model = built(cfg).eval()

    batch, merged = augmented(model, cfg, 'flip_pipeline')

    plain, flipped = batch['inputs']
    assert torch.equal(flipped[0], plain[0].flip(-1))
    with torch.no_grad():
        data = model.data_preprocessor(dict(inputs=[plain[0], flipped[0]]))
        one, other = model(data['inputs'], mode='tensor').softmax(1)
    size = merged.ori_shape
    expected = F.interpolate((one + other.flip(-1))[None], size, mode='bilinear')
    agreement = expected.argmax(1) == merged.pred_sem_seg.data
    assert agreement.float().mean() > 0.95  # resized before the softmax, or after it


@pytest.mark.parametrize('name', EVALUATED)
def test_test_time_augmentation_has_six_scales_and_their_flips(name, small):
    cfg = small(name)

    batch, merged = augmented(built(cfg), cfg, 'tta_pipeline')

    sides = [x[0].shape[-1] for x in batch['inputs']]
    if 'biformer' in name:  # resized to multiples of 32
        assert sides[::2] == sides[1::2] == [32, 64, 64, 96, 96, 128]
    else:
        assert sides[::2] == sides[1::2] == [32, 48, 64, 80, 96, 112]
    assert merged.pred_sem_seg.shape == merged.gt_sem_seg.shape == (128, 128)
    assert merged.gt_sem_seg.data.unique().tolist()[-1] == 255  # the reduced zero


@pytest.mark.parametrize('name', EVALUATED)
def test_one_window_of_the_image_size_equals_the_whole_image(name, small):
    cfg = small(name)
    model = built(cfg).eval()
    image = torch.rand(1, 3, 64, 64)

    whole = model(image, mode='predict')[0].seg_logits.data
    model.test_cfg.mode = 'slide'
    windows = model(image, mode='predict')[0].seg_logits.data

    torch.testing.assert_close(windows, whole)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('name', EVALUATED)
def test_images_of_any_size_are_predicted(name, mode, small):
    cfg = small(name)
    cfg.model.test_cfg.mode = mode
    model = built(cfg).eval()

    for size in ((64, 256), (65, 130), (130, 41)):
        (result,) = model(torch.rand(1, 3, *size), mode='predict')
        assert result.seg_logits.data.shape == (150, *size)
        assert result.seg_logits.data.isfinite().all()


@pytest.mark.parametrize('name', EVALUATED)
def test_checkpointing_changes_neither_losses_nor_gradients(name, small):
    cfg = small(name)
    assert cfg.model.backbone.drop_path_rate > 0
    images = first(cfg.train_dataloader)
    found = []
    for with_cp in (False, True):
        cfg.model.backbone.with_cp = with_cp
        torch.manual_seed(0)
        model = built(cfg).train()
        batch = model.data_preprocessor(copy.deepcopy(images), training=True)
        torch.manual_seed(1)  # drops the same paths
        losses = model(**batch, mode='loss')
        model.parse_losses(losses)[0].backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        found.append((losses, gradients, list(model.buffers())))

    torch.testing.assert_close(*found)
