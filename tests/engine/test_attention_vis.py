import json
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS, DefaultScope
from mmengine.visualization import LocalVisBackend, Visualizer
from PIL import Image
from torch import nn

from mmsparse.engine.hooks import AttentionVisHook
from mmsparse.visualization import ImageTransform, read_pipeline, sample_statistics


@pytest.fixture
def runner(detector_cfg, detector, tmp_path):
    """What a hook uses of a runner, with one image of two boxes."""
    path = tmp_path / 'image.png'
    Image.effect_noise((90, 60), 60).convert('RGB').save(path)
    instances = [
        dict(bbox=[0, 0, 90, 60], ignore_flag=0),
        dict(bbox=[10, 10, 10.1, 10.1], ignore_flag=0),  # between the centers
        dict(bbox=[10, 10, 10.1, 10.1], ignore_flag=1),
    ]

    class Images(list):
        metainfo = dict(classes=tuple('0123456789'))
        pipeline = SimpleNamespace(transforms=read_pipeline(detector_cfg))

        def get_data_info(self, i):
            return dict(img_path=str(path), instances=instances)

    backend = LocalVisBackend(save_dir=str(tmp_path / 'vis'))
    visualizer = Visualizer(name=str(tmp_path))
    visualizer._vis_backends = dict(local=backend)
    return SimpleNamespace(
        model=detector,
        train_loop=None,
        iter=40,
        epoch=0,
        val_dataloader=SimpleNamespace(dataset=Images([0, 1, 2])),
        visualizer=visualizer,
        logger=logging.getLogger('attention_vis'),
        folder=tmp_path / 'vis',
    )


def test_figures_and_statistics_go_to_the_visualizer(runner):
    with DefaultScope.overwrite_default_scope('mmdet'):
        hook = HOOKS.build(dict(type='mmsparse.AttentionVisHook', num_images=1))
    runner.model.train()

    hook.before_train(runner)
    hook.after_val_epoch(runner)

    drawn = {path.name for path in (runner.folder / 'vis_image').iterdir()}
    assert drawn == {
        f'image_{name}_40.png'
        for name in (
            'attention',
            'routed_regions',
            'foreground',
            'kept_tokens',
            'sampling_locations',
        )
    }
    logged = json.loads((runner.folder / 'scalars.json').read_text())
    assert logged.pop('step') == 40
    stages = (1, 2, 3)
    assert set(logged) == {
        *(f'routing_entropy/stage_{i}' for i in stages),
        *(f'never_routed/stage_{i}' for i in stages),
        *(f'kept_token_recall/layer_{i}' for i in (1, 2)),
    }
    assert logged['kept_token_recall/layer_1'] == 0.5
    assert logged['routing_entropy/stage_3'] == pytest.approx(1)  # all regions
    assert logged['never_routed/stage_3'] == 0
    assert runner.model.training
    runner.model.eval()


def test_only_every_interval_th_validation_is_drawn(runner):
    hook = AttentionVisHook(num_images=1, interval=2)

    hook.after_val_epoch(runner)
    before = (runner.folder / 'scalars.json').exists()
    hook.after_val_epoch(runner)

    assert not before
    assert (runner.folder / 'scalars.json').exists()


def test_the_query_point_of_an_image_is_chosen_once(runner, monkeypatch):
    chosen = iter([(20.0, 30.0)])
    monkeypatch.setattr(
        'mmsparse.engine.hooks.attention_vis.choose_query_point',
        lambda *args: next(chosen),
    )
    hook = AttentionVisHook(num_images=1)

    hook.after_val_epoch(runner)
    hook.after_val_epoch(runner)

    assert list(hook._points.values()) == [(20.0, 30.0)]


@pytest.mark.parametrize('name', ['num_images', 'interval'])
def test_an_argument_below_one_raises(name):
    with pytest.raises(ValueError, match=f'{name} must be at least 1; got 0'):
        AttentionVisHook(**{name: 0})


def test_a_model_without_supported_layers_raises_before_training():
    with pytest.raises(ValueError, match='model must have layers to record'):
        AttentionVisHook().before_train(SimpleNamespace(model=nn.Linear(1, 1)))


def test_offset_spread_is_measured_by_stage(record_backbone):
    _, sample = record_backbone('dat', ImageTransform((64, 64), (64, 64)))

    scalars = sample_statistics(sample, torch.empty(0, 4))

    assert set(scalars) == {'offset_spread/stage_1', 'offset_spread/stage_2'}
    assert min(scalars.values()) > 0
