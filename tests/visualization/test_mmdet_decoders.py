"""Recorded sampling locations reproduce the output of mmdet's decoders."""

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from torch import nn
from torch.nn.functional import grid_sample

from mmsparse.apis import build_model, read_config
from mmsparse.visualization import record

CONFIGS = Path(__file__).parents[2] / 'configs'
SMALL_DETR = {
    'model.num_queries': 12,
    'model.backbone.arch': 'nano',
    'model.backbone.regions_per_side': 4,
    'model.backbone.init_cfg': None,
    'model.neck.in_channels': [64, 128, 256],
    'model.encoder.num_layers': 1,
    'model.decoder.num_layers': 2,
}
MODELS = {
    'DINO': ('biformer/dino_biformer-nano_1xb4-4e_digits.py', {}),
    'Deformable DETR': (
        'deformable_detr/deformable-detr_biformer-small_8xb2-50e_coco.py',
        SMALL_DETR,
    ),
    'Deformable DETR, refined, two-stage': (
        'deformable_detr/deformable-detr-refine-twostage_biformer-small_8xb2-50e_coco.py',
        SMALL_DETR,
    ),
}
SIZES = ((64, 96), (96, 72))  # of two images
PADDED = 96  # side of the batch


@pytest.fixture(params=MODELS)
def model(request):
    config, options = MODELS[request.param]
    cfg = read_config(str(CONFIGS / config), options)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.init_weights()
    for layer in model.decoder.layers:
        nn.init.normal_(layer.cross_attn.sampling_offsets.weight, std=0.2)
        nn.init.normal_(layer.cross_attn.attention_weights.weight, std=0.2)
    return model


def batch(model):
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]
    meta = [dict(img_shape=size, scale_factor=(1.0, 1.0)) for size in SIZES]
    samples = [
        DetDataSample(metainfo=dict(ori_shape=m['img_shape'], **m)) for m in meta
    ]
    return model.data_preprocessor(dict(inputs=images, data_samples=samples))


def attend(layer, inputs, points, weights, sizes):
    """Sum values at points in [0, 1] over the batch's padded size: equation 3."""
    value = layer.value_proj(inputs['value'])
    value = value.masked_fill(inputs['key_padding_mask'][..., None], 0.0)
    levels = value.unflatten(-1, (layer.num_heads, -1)).split(
        [h * w for h, w in sizes], dim=1
    )
    total = 0
    for i, (level, size) in enumerate(zip(levels, sizes, strict=True)):
        maps = level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
        grid = 2 * points[:, :, :, i].transpose(1, 2).flatten(0, 1) - 1
        sampled = grid_sample(maps, grid, align_corners=False)
        sampled = sampled.unflatten(0, (len(value), -1))  # (B, heads, D, Q, P)
        shares = weights[:, :, :, i].transpose(1, 2).unsqueeze(2)
        total = total + (sampled * shares).sum(-1)
    out = layer.output_proj(total.flatten(1, 2).mT)
    return out + inputs['query']


def test_recorded_points_and_weights_reproduce_the_decoder(model):
    calls = []
    for layer in model.decoder.layers:
        layer.cross_attn.register_forward_hook(
            lambda layer, args, inputs, out: calls.append((layer, inputs, out)),
            with_kwargs=True,
        )
    data = batch(model)

    with record(model) as recording, torch.no_grad():
        results = model(**data, mode='predict')

    assert len(recording.sampling) == len(calls) == 2
    valid = torch.tensor([[w / PADDED, h / PADDED] for h, w in SIZES])
    for (layer, inputs, out), found in zip(calls, recording.sampling, strict=True):
        sizes = [tuple(size) for size in inputs['spatial_shapes'].tolist()]
        cells = torch.tensor([[(w, h) for h, w in sizes]])  # (1, levels, 2)
        # The part of a level whose cells are not all padding.
        whole = (valid[:, None] * cells).ceil() / cells
        points = found.points * whole[:, None, None, :, None]
        with torch.no_grad():
            expected = attend(layer, inputs, points, found.weights, sizes)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)

    for i, result in enumerate(results):
        best = recording.detections.scores[i].argmax()
        ends = torch.tensor(SIZES[i][::-1]).repeat(2)
        box = recording.detections.boxes[i, best] * ends
        torch.testing.assert_close(
            result.pred_instances.bboxes[0], box.clamp(min=torch.zeros(4), max=ends)
        )
