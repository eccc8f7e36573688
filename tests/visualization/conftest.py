from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmsparse.apis import build_model, read_config
from mmsparse.models import DAT, BiFormer, ShuntedTransformer
from mmsparse.visualization import ImageTransform, Sample, read_pipeline, record, view

CONFIG = Path(__file__).parents[2] / 'configs/focus_detr'
CONFIG /= 'focus-detr_biformer-nano_1xb4-4e_digits.py'
SIZE = (60, 90)  # height and width of the picture; enlarged by 1.5

# Of one stage and up, as small as can be.
BACKBONES = {
    'dat': lambda: DAT('nano', out_indices=(1,)),
    'biformer': lambda: BiFormer('nano', regions_per_side=4, out_indices=(1,)),
    'shunted': lambda: ShuntedTransformer('nano', out_indices=(1,)),
}


@pytest.fixture
def look():
    """Run a small backbone on a picture; the frame tells where that lies in it."""

    def run(name, frame, canvas=None):
        backbone = BACKBONES[name]().eval()
        x = torch.randn(1, 3, *(canvas or frame.size))
        with record(backbone) as seen, torch.no_grad():
            backbone(x)
        picture = np.full((*frame.picture, 3), 128, np.uint8)
        return backbone, Sample(picture, frame, seen)

    return run


@pytest.fixture
def mirrored_frame():
    """A picture of 60x40, twice as large and mirrored; 120x80, padded to 128x96."""
    return ImageTransform((40, 60), (40, 60)).resized((80, 120)).mirrored('horizontal')


@pytest.fixture
def drawn():
    """What a panel of a figure shows."""

    def read(axis):
        from matplotlib.collections import (
            LineCollection,
            PathCollection,
            PolyCollection,
        )

        of = SimpleNamespace(dots=[], polygons=[], lines=[], boxes=[])
        for collection in axis.collections:
            if isinstance(collection, PathCollection):
                of.dots.append(collection)
            elif isinstance(collection, LineCollection):
                of.lines.append(np.stack(collection.get_segments()))
            elif isinstance(collection, PolyCollection):
                paths = collection.get_paths()
                of.polygons.append(
                    SimpleNamespace(
                        extents=np.array([x.get_extents().extents for x in paths]),
                        colors=collection.get_facecolor(),
                    )
                )
        of.boxes = [patch.get_bbox().extents.tolist() for patch in axis.patches]
        return of

    return read


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
    """Boxes are not refined, and each head reads the middle of the box it gets."""
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
def detector_scene(detector_cfg, detector, tmp_path_factory):
    path = tmp_path_factory.mktemp('detector') / 'noise.png'
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).save(path)
    transforms, names = read_pipeline(detector_cfg)
    return view(detector, transforms, str(path), names, score_thr=0.0)
