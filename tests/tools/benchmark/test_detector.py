import copy
from pathlib import Path

import pytest
import torch
from benchmark import Stopwatch, measure
from benchmark.detector import (
    ENCODER,
    WHOLE,
    config_candidates,
    detector_candidates,
    published_ap,
    to_dino,
    with_keep_ratio,
)

from mmsparse.apis import build_model, read_config
from mmsparse.errors import UsageError

CONFIGS = Path(__file__).parents[3] / 'configs'
CPU = torch.device('cpu')
SMALL = {
    'model.num_queries': 20,
    'model.backbone.depth': 18,
    'model.neck.in_channels': [128, 256, 512],
    'model.encoder.num_layers': 2,
    'model.cascade': (0.8, 0.4),
    'model.decoder.num_layers': 1,
}


@pytest.fixture
def cfg():
    path = CONFIGS / 'focus_detr' / 'focus-detr_r50_8xb2-12e_coco.py'
    return read_config(str(path), SMALL)


def test_to_dino_keeps_all_other_modules(cfg):
    before = copy.deepcopy(cfg._cfg_dict)

    focus, dino = build_model(cfg), build_model(to_dino(cfg))

    assert cfg._cfg_dict == before
    assert type(dino).__name__ == 'DINO'
    assert type(dino.bbox_head).__name__ == 'DINOHead'
    own = {name for name in focus.state_dict() if 'token_' in name}
    assert set(focus.state_dict()) - own == set(dino.state_dict())


@pytest.mark.parametrize('options', [{}, dict(keep_ratio=0.4, value_source='current')])
def test_to_dino_drops_all_options_of_focus_detr(cfg, options):
    cfg.model.update(options)
    cfg.model.bbox_head.loss_foreground = dict(norm='batch')

    assert build_model(to_dino(cfg)).num_queries == 20


def test_a_keep_ratio_is_the_mean_over_the_layers(cfg):
    assert with_keep_ratio(cfg, 0.3).model.keep_ratio == pytest.approx(0.5)
    del cfg.model['cascade']
    assert with_keep_ratio(cfg, 0.3).model.keep_ratio == pytest.approx(0.5)
    assert 'keep_ratio' not in cfg.model


@pytest.mark.parametrize('ratio', [0, 0.7])
def test_a_keep_ratio_out_of_range_raises_an_error(cfg, ratio):
    with pytest.raises(ValueError, match=rf'in \(0, 0.6\], .*; got {ratio}'):
        with_keep_ratio(cfg, ratio)


def test_another_detector_raises_an_error():
    cfg = read_config(
        str(CONFIGS / 'biformer' / 'retinanet_biformer-small_8xb2-12e_coco.py')
    )

    with pytest.raises(UsageError, match='must be mmsparse.FocusDETR; got RetinaNet'):
        detector_candidates(cfg, [0.3], (64, 64), 1, CPU)


def test_images_too_small_for_dino_raise_an_error(cfg):
    with pytest.raises(ValueError, match='32x32 have 22 tokens, .* num_queries=30;'):
        cfg.model.num_queries = 30
        detector_candidates(cfg, [0.3], (32, 32), 1, CPU)


def test_dino_and_focus_detr_are_measured(cfg):
    candidates = detector_candidates(cfg, [0.2, 0.6], (64, 72), 2, CPU)

    found = measure(candidates, 2, CPU)

    assert [x.name for x in found] == ['DINO', 'Focus-DETR 0.2', 'Focus-DETR 0.6']
    for measured in found:
        assert set(measured.seconds) == {ENCODER, WHOLE}
        assert [len(x) for x in measured.seconds.values()] == [2, 2]
        assert min(measured.seconds[ENCODER]) > 0
        assert measured.median_seconds(ENCODER) < measured.median_seconds(WHOLE)
        assert measured.peak_bytes > 2**16


def test_measuring_leaves_the_detector_unchanged(cfg):
    (_, candidate) = detector_candidates(cfg, [0.3], (64, 72), 1, CPU)
    detector = candidate.run.args[0]

    candidate.run(Stopwatch(CPU))

    assert 'forward_encoder' not in vars(detector)
    assert not any(x.requires_grad for x in detector.buffers())
    assert all(x.grad is None for x in detector.parameters())


@pytest.mark.parametrize('name', ['biformer-small', 'swin-t'])
def test_any_backbone_is_compared(name):
    path = CONFIGS / 'focus_detr' / f'focus-detr_{name}_8xb2-12e_coco.py'
    cfg = read_config(str(path), {'model.num_queries': 20})
    if name.startswith('biformer'):
        cfg.merge_from_dict(
            {'model.backbone.arch': 'nano', 'model.neck.in_channels': [64, 128, 256]}
        )

    for candidate in detector_candidates(cfg, [0.3], (64, 96), 1, CPU):
        candidate.run(Stopwatch(CPU))


NANO = {'model.num_queries': 20}


def test_any_list_of_configs_is_compared():
    names = [
        'sparse-detr_biformer-nano_1xb4-4e_digits',
        str(CONFIGS / 'focus_detr' / 'focus-detr_biformer-nano_1xb4-4e_digits.py'),
    ]

    candidates, costs = config_candidates(names, NANO, (64, 96), 1, CPU)
    found = measure(candidates, 1, CPU)

    assert [x.name for x in found] == [Path(name).stem for name in names] == [*costs]
    for measured, cost in zip(found, costs.values(), strict=True):
        assert [*measured.seconds] == ['backbone', ENCODER, 'decoder', WHOLE]
        assert [*cost] == [
            'params (M)',
            'GMACs',
            'backbone',
            ENCODER,
            'decoder',
            'box AP',
        ]
        parts = sum(float(cost[part]) for part in ('backbone', ENCODER, 'decoder'))
        assert 0 < parts <= float(cost['GMACs']) + 0.2


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        (
            CONFIGS / 'sparse_detr' / 'sparse-detr_r50_keep-30_8xb2-50e_coco.py',
            "46.0 (authors' README)",
        ),
        (
            CONFIGS
            / 'deformable_detr'
            / 'deformable-detr_dat-pp-tiny_8xb2-50e_coco.py',
            '-',
        ),
        (Path('elsewhere.py'), '-'),
    ],
    ids=['published', 'not trained', 'no metafile'],
)
def test_published_results_have_their_source(path, expected):
    assert published_ap(path) == expected


def test_a_config_without_encoder_raises_an_error():
    name = 'retinanet_biformer-small_8xb2-12e_coco'

    with pytest.raises(UsageError, match='got RetinaNet without forward_encoder'):
        config_candidates([name], {}, (64, 64), 1, CPU)


def test_configs_of_one_name_raise_an_error():
    names = ['focus-detr_r50_8xb2-12e_coco'] * 2

    with pytest.raises(UsageError, match='are named focus-detr_r50_8xb2-12e_coco: re'):
        config_candidates(names, {}, (64, 64), 1, CPU)
