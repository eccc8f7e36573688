"""Fixtures: small models, recorded on images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmsparse.apis import build_model, read_config
from mmsparse.models import DAT, BiFormer, ShuntedTransformer
from mmsparse.visualization import (
    Sample,
    read_classes,
    read_pipeline,
    record,
    record_sample,
)

CONFIG = Path(__file__).parents[1] / 'configs/focus_detr'
CONFIG /= 'focus-detr_biformer-nano_1xb4-4e_digits.py'
SIZE = (60, 90)  # height and width of the image; resized by 1.5

BACKBONES = {  # two stages of the smallest archs
    'dat': lambda: DAT('nano', out_indices=(1,)),
    'biformer': lambda: BiFormer('nano', regions_per_side=4, out_indices=(1,)),
    'shunted': lambda: ShuntedTransformer('nano', out_indices=(1,)),
}


@pytest.fixture
def record_backbone():
    """Run a small backbone on noise, as the input of a gray image."""

    def run(name, transform, padded_size=None):
        backbone = BACKBONES[name]().eval()
        x = torch.randn(1, 3, *(padded_size or transform.input_size))
        with record(backbone) as recording, torch.no_grad():
            backbone(x)
        image = np.full((*transform.image_size, 3), 128, np.uint8)
        return backbone, Sample(image, transform, recording)

    return run


@pytest.fixture(scope='session')
def detector_cfg():
    cfg = read_config(str(CONFIG))
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[1].scale = (135, 90)
    pipeline.insert(2, dict(type='RandomFlip', prob=1.0))
    pipeline[-1].meta_keys = (*pipeline[-1].meta_keys, 'flip', 'flip_direction')
    return cfg


@pytest.fixture(scope='session')
def detector(detector_cfg):
    """A Focus-DETR that does not refine boxes, and samples at their centers."""
    torch.manual_seed(0)
    model = build_model(detector_cfg).eval()
    model.init_weights()
    nn.init.normal_(model.level_embed)
    for head in model.bbox_head.cls_branches:
        nn.init.normal_(head.weight, std=0.3)
    for branch in model.bbox_head.reg_branches[:-1]:  # the last is the encoder's
        for parameter in branch[-1].parameters():
            nn.init.zeros_(parameter)
    for layer in model.decoder.layers:
        nn.init.zeros_(layer.cross_attn.sampling_offsets.weight)
        nn.init.zeros_(layer.cross_attn.sampling_offsets.bias)
    return model


@pytest.fixture(scope='session')
def detector_sample(detector_cfg, detector, tmp_path_factory):
    path = tmp_path_factory.mktemp('detector') / 'noise.png'
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).save(path)
    transforms = read_pipeline(detector_cfg)
    names, _ = read_classes(detector_cfg, None)
    return record_sample(detector, transforms, str(path), names, score_thr=0.0)
