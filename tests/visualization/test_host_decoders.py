"""Sampling points of mmdet's own decoders, read back from what these compute."""

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
    'Deformable DETR, refined, of two stages': (
        'deformable_detr/deformable-detr-refine-twostage_biformer-small_8xb2-50e_coco.py',
        SMALL_DETR,
    ),
}
SIZES = ((64, 96), (96, 72))  # of two pictures
CANVAS = 96  # its side


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
    pictures = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]
    meta = [dict(img_shape=size, scale_factor=(1.0, 1.0)) for size in SIZES]
    samples = [
        DetDataSample(metainfo=dict(ori_shape=m['img_shape'], **m)) for m in meta
    ]
    return model.data_preprocessor(dict(inputs=pictures, data_samples=samples))


def read(layer, inputs, points, weights, sizes):
    """Sum the values at points from 0 to 1 over the canvas: the paper's equation 3."""
    value = layer.value_proj(inputs['value'])
    value = value.masked_fill(inputs['key_padding_mask'][..., None], 0.0)
    parts = value.unflatten(-1, (layer.num_heads, -1)).split(
        [h * w for h, w in sizes], dim=1
    )
    total = 0
    for level, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
        spots = points[:, :, :, level].transpose(1, 2).flatten(0, 1)
        found = grid_sample(maps, 2 * spots - 1, align_corners=False)
        found = found.unflatten(0, (len(value), -1))  # (B, heads, D, Q, P)
        share = weights[:, :, :, level].transpose(1, 2).unsqueeze(2)
        total = total + (found * share).sum(-1)
    out = layer.output_proj(total.flatten(1, 2).mT)
    return out + inputs['query']


def test_points_and_weights_are_what_the_decoder_reads(model):
    calls = []
    for layer in model.decoder.layers:
        layer.cross_attn.register_forward_hook(
            lambda layer, args, inputs, out: calls.append((layer, inputs, out)),
            with_kwargs=True,
        )
    data = batch(model)

    with record(model) as seen, torch.no_grad():
        results = model(**data, mode='predict')

    assert len(seen.sampling) == len(calls) == 2
    valid = torch.tensor([[w / CANVAS, h / CANVAS] for h, w in SIZES])
    for (layer, inputs, out), found in zip(calls, seen.sampling, strict=True):
        sizes = [tuple(size) for size in inputs['spatial_shapes'].tolist()]
        cells = torch.tensor([[(w, h) for h, w in sizes]])  # (1, levels, 2)
        # Of the cells of a level, those that hold a part of the picture.
        whole = (valid[:, None] * cells).ceil() / cells
        points = found.points * whole[:, None, None, :, None]
        with torch.no_grad():
            expected = read(layer, inputs, points, found.weights, sizes)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)

    for i, result in enumerate(results):
        best = seen.detections.scores[i].argmax()
        ends = torch.tensor(SIZES[i][::-1]).repeat(2)
        box = seen.detections.boxes[i, best] * ends
        torch.testing.assert_close(
            result.pred_instances.bboxes[0], box.clamp(min=torch.zeros(4), max=ends)
        )
