"""Drawings of a small DETR of mmdet with random weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmsparse.apis import build_model, read_config
from mmsparse.visualization import (
    draw_encoder_points,
    draw_queries,
    list_drawings,
    read_classes,
    read_pipeline,
    record_sample,
    write_page,
)
from mmsparse.visualization.detr import best_queries, query_attention

SMALL = {
    'model.num_queries': 12,
    'model.test_cfg.max_per_img': 12,
    'model.backbone.depth': 18,
    'model.backbone.init_cfg': None,
    'model.neck.in_channels': [512],
    'model.encoder.num_layers': 1,
    'model.decoder.num_layers': 2,
    'test_dataloader.dataset.pipeline.1.scale': (192, 128),
}


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp('detr') / 'noise.png'
    Image.effect_noise((90, 60), 60).convert('RGB').save(path)
    config = tmp_path_factory.mktemp('config') / 'detr.py'
    config.write_text("_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'\n")
    cfg = read_config(str(config), SMALL)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    attention = model.decoder.layers[-1].cross_attn.attn
    handle = attention.register_forward_hook(
        lambda layer, args, out: setattr(model, 'averaged', out[1])
    )
    transforms, (names, _) = read_pipeline(cfg), read_classes(cfg, None)
    found = record_sample(model, transforms, str(path), names, score_thr=0.0)
    handle.remove()
    found.averaged = model.averaged
    return found


def test_recorded_attention_equals_that_of_the_decoder(sample):
    values, corners = query_attention(sample)

    assert values.shape == (12, 4, 6)
    torch.testing.assert_close(values.flatten(1), sample.averaged[0])
    assert corners.flatten().tolist() == pytest.approx([0, 0, 90, 60])


def test_scores_leave_out_no_object(sample):
    scores, labels, boxes = sample.query_detections()

    best = best_queries(sample)[0]

    assert labels.max() < 80
    assert f'({scores[best]:.2f})' in sample.labels[0]
    clipped = boxes[best].clamp(
        min=torch.zeros(4), max=torch.tensor([90, 60, 90, 60.0])
    )
    torch.testing.assert_close(sample.boxes[0], clipped, atol=1e-2, rtol=0)


def test_queries_and_encoder_points_are_drawn(sample, tmp_path):
    assert list(list_drawings(sample)) == ['attention', 'queries', 'encoder_points']

    queries, points = draw_queries(sample), draw_encoder_points(sample, (45, 30))

    titles = [axis.get_title() for axis in queries.axes]
    assert titles[0] == 'all objects'
    assert titles[1] == sample.labels[0]
    assert points.axes[0].get_title() == 'attended to by the point'
    (layer,) = sample.recording.layers
    heat = points.axes[0].images[-1].get_array()[..., 3]
    center = (sample.boxes[0, :2] + sample.boxes[0, 2:]) / 2
    with torch.no_grad():
        cell = torch.tensor([sample.query_at(tuple(center.tolist()), layer)])
        (attention,) = layer.layer.attention_maps(layer.x, cell)
    hottest = attention.weights[0].mean(0)[0].argmax()
    assert np.asarray(heat).argmax() == hottest

    write_page(sample, (45, 30), tmp_path / 'page.html')
    assert 'attention of a detection' in (tmp_path / 'page.html').read_text()
