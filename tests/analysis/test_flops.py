from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.utils import get_installed_path
from torch import nn

from mmsparse.analysis.flops import count_macs, format_count, measure
from mmsparse.apis import build_model, read_config
from mmsparse.factory import create_model
from mmsparse.models import (
    DAT,
    AgentAttention2d,
    AxialAttention2d,
    BiFormer,
    BiLevelRoutingAttention,
    CrossShapedAttention2d,
    FullAttention2d,
    LinearSpatialReductionAttention2d,
    NeighborhoodAttention2d,
    ShuntedTransformer,
    SpatialReductionAttention2d,
    WindowAttention2d,
)
from mmsparse.ops import neighborhood_attention

CONFIGS = Path(__file__).parents[2] / 'configs'
ALL = dict(out_indices=(0, 1, 2, 3))
DENSE = dict(**ALL, out_norm='layer')


@pytest.mark.parametrize(
    ('backbone', 'arguments', 'shape', 'billions'),
    [
        # Without the padding that the official code projects and then crops.
        (BiFormer, dict(arch='small', regions_per_side=16), (800, 1344), 142.4 - 2.5),
        (BiFormer, dict(arch='tiny', regions_per_side=8), (512, 2048), 88.5),
        (BiFormer, dict(arch='base', regions_per_side=8), (512, 512), 57.6),
        (DAT, dict(arch='pp-tiny'), (800, 1344), 132.6),
        (DAT, dict(arch='pp-small'), (800, 1280), 247.5),
        (DAT, dict(arch='pp-base'), (512, 2048), 423.3),
        (ShuntedTransformer, dict(arch='small'), (800, 1344), 258.7),
        (ShuntedTransformer, dict(arch='tiny'), (384, 384), 7.2),
        (ShuntedTransformer, dict(arch='base'), (512, 2048), 397.3),
    ],
)
def test_macs_of_large_images_equal_those_of_the_official_backbones(
    backbone, arguments, shape, billions
):
    settings = ALL if backbone is ShuntedTransformer else DENSE
    with torch.device('meta'):
        model = backbone(**arguments, **settings)

    total = measure(model, shape)[-1]

    assert total.macs / 1e9 == pytest.approx(billions, rel=0.01)


class Depthwise(nn.Conv2d):
    def __init__(self):
        super().__init__(6, 6, 3, padding=1, groups=6)


class Grouped(nn.Conv2d):
    def __init__(self):
        super().__init__(6, 8, 3, stride=2, padding=1, groups=2)


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2).unflatten(-1, (2, 3)).transpose(1, 2)
        return F.scaled_dot_product_attention(
            tokens, tokens[:, :, :10], tokens[:, :, :10]
        )


class Sampling(nn.Module):
    def forward(self, x):
        return F.grid_sample(x, x.new_zeros(1, 5, 7, 2), align_corners=True)


class Normalization(nn.BatchNorm2d):
    def __init__(self):
        super().__init__(6)


@pytest.mark.parametrize(
    ('module', 'macs'),
    [
        (Depthwise, 6 * 9 * 8 * 10),
        (Grouped, 8 * 3 * 9 * 4 * 5),
        (Attention, 2 * 2 * 80 * 10 * 3),
        (Sampling, 4 * 6 * 5 * 7),
        (Normalization, 0),
    ],
)
def test_macs_of_every_operation(module, macs):
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.rest = module()

        def forward(self, x):
            return self.rest(self.stem(x))

    stem, rest, total = measure(Stem(), (8, 10))

    assert (stem.name, stem.macs) == ('stem', 3 * 6 * 80)
    assert (rest.name, rest.macs) == ('rest', macs)
    assert total.macs == stem.macs + rest.macs
    assert total.parameters == stem.parameters + rest.parameters


class StemAndAttention(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.attention = attention

    def forward(self, x):
        return self.attention(self.stem(x))


@pytest.mark.parametrize('in_channels', [1, 4])
def test_images_have_the_channels_of_the_backbone(in_channels):
    rgb = measure(BiFormer('nano'), (64, 64))[-1]
    other = measure(BiFormer('nano', in_channels=in_channels), (64, 64))[-1]

    assert other.macs - rgb.macs == (in_channels - 3) * 9 * 16 * 32 * 32


def test_neighborhood_attention_counts_only_its_neighbors():
    layer = NeighborhoodAttention2d(16, num_heads=2, kernel_size=3)

    attention = measure(StemAndAttention(layer), (9, 11))[1]

    assert attention.macs == 9 * 11 * (4 * 16 * 16 + 2 * 9 * 16)


def test_routed_attention_counts_only_routed_regions():
    layer = BiLevelRoutingAttention(16, 2, topk=3, regions_per_side=4, lepe_kernel=0)

    attention = measure(StemAndAttention(layer), (8, 8))[1]

    routing = 16 * 16 * 16
    assert attention.macs == 64 * (4 * 16 * 16 + 2 * 3 * 4 * 16) + routing


C, H, W = 16, 12, 20
N = H * W
LAYERS = {  # docs/attention_layers.md: MACs over C, of attention and of projections
    'full': (FullAttention2d(C, 2, lepe_kernel=0), 2 * N**2, 4 * N * C),
    'windows': (WindowAttention2d(C, 2, 2, dilation=2), 2 * N * 2**2, 4 * N * C),
    'dilated': (
        NeighborhoodAttention2d(C, 2, 3, dilation=4),
        2 * N * 3**2,
        4 * N * C,
    ),
    'cross-shaped': (
        CrossShapedAttention2d(C, 2, stripe_width=4, lepe_kernel=0),
        N * 4 * (H + W),
        4 * N * C,
    ),
    'axial': (AxialAttention2d(C, 2, lepe_kernel=0), 2 * N * (H + W), 7 * N * C),
    'spatial reduction': (
        SpatialReductionAttention2d(C, 2, sr_ratio=4),
        2 * N**2 // 4**2,
        3 * N * C + 2 * N // 4**2 * C,
    ),
    'pooled': (
        LinearSpatialReductionAttention2d(C, 2, pool_size=3),
        2 * N * 3**2,
        2 * N * C + 3 * 3**2 * C,
    ),
    'agents': (AgentAttention2d(C, 2, 9, lepe_kernel=0), 4 * N * 9, 4 * N * C),
}


@pytest.mark.parametrize('name', LAYERS)
def test_attention_layers_have_the_documented_macs(name):
    layer, attention, projections = LAYERS[name]

    part = measure(StemAndAttention(layer), (H, W))[1]

    assert part.macs == C * (attention + projections)


def test_measuring_does_not_change_the_model_and_the_ops():
    layer = StemAndAttention(NeighborhoodAttention2d(16, num_heads=2, kernel_size=3))
    layer.train()

    measure(layer, (9, 11))

    assert {x.device.type for x in layer.parameters()} == {'cpu'}
    assert layer.training
    assert 'forward' not in vars(layer.stem)
    module = __import__(NeighborhoodAttention2d.__module__, fromlist=['_'])
    assert module.neighborhood_attention is neighborhood_attention


def measure_config(config, shape=(128, 128)):
    with torch.device('meta'):
        model = build_model(read_config(str(CONFIGS / config)))
    return {part.name: part for part in measure(model, shape)}


def total_of(parts):
    """Return the sum over parts that are not parts of parts."""
    return sum(
        part.macs or 0
        for name, part in parts.items()
        if '.' not in name and not name.startswith('total')
    )


def test_a_detection_transformer_is_counted_with_its_encoder_decoder_and_head():
    parts = measure_config('biformer/dino_biformer-nano_1xb4-4e_digits.py', (128, 128))

    for name in ('backbone', 'neck', 'encoder', 'decoder', 'bbox_head'):
        assert parts[name].macs > 0
    assert parts['dn_query_generator'].macs is None  # for training only
    # Proposals of the encoder pass branches of the head outside of its forward method.
    assert 0 <= parts['total'].macs - total_of(parts) < parts['decoder'].macs / 3
    assert parts['total'].parameters == 4_720_298
    stages = [parts[f'backbone.stage {i}'].macs for i in (1, 2, 3, 4)]
    assert sum(stages) == parts['backbone'].macs


@pytest.mark.parametrize(
    'config',
    [
        'biformer/dino_biformer-nano_1xb4-4e_digits.py',
        'deformable_detr/deformable-detr_biformer-small_8xb2-50e_coco.py',
        'detr/detr_biformer-small_8xb2-150e_coco.py',
        'focus_detr/focus-detr_dat-nano_1xb4-4e_digits.py',
        'sparse_detr/sparse-detr_biformer-nano_1xb4-4e_digits.py',
    ],
)
def test_a_detection_transformer_has_the_macs_of_a_run_with_values(config):
    model = build_model(read_config(str(CONFIGS / config), {'model.num_queries': 20}))
    model.eval().requires_grad_(False)
    shape = (128, 160)
    sample = DetDataSample(metainfo=dict(batch_input_shape=shape, img_shape=shape))
    x = torch.rand(1, 3, *shape)

    total = measure(model, shape)[-1]

    assert total.macs == count_macs(lambda: model(x, [sample], mode='tensor'))


def test_mask_rcnn_has_the_published_macs():
    parts = measure_config('dat/mask-rcnn_dat-pp-tiny_32xb2-12e_coco.py', (800, 1280))

    assert parts['total'].macs / 1e9 == pytest.approx(301, rel=0.03)
    assert parts['total'].macs == total_of(parts)


def test_the_head_of_retinanet_is_counted_on_every_level():
    config = 'biformer/retinanet_biformer-small_8xb2-12e_coco.py'
    convs = 8 * 256 * 256 * 9 + 256 * 9 * 9 * (80 + 4)  # 80 classes, 9 anchors

    parts = measure_config(config, (256, 320))

    cells = 32 * 40 + 16 * 20 + 8 * 10 + 4 * 5 + 2 * 3
    assert parts['bbox_head'].macs == cells * convs
    assert parts['total'].macs == total_of(parts)


def test_heads_of_a_cascade_are_counted():
    config = 'dat/cascade-mask-rcnn_dat-pp-tiny_32xb2-12e_coco.py'

    parts = measure_config(config, (256, 256))

    assert parts['roi_head'].macs == sum(
        parts[f'roi_head.{name}'].macs for name in ('bbox_head', 'mask_head')
    )
    assert parts['roi_head'].macs / 1e9 == pytest.approx(545.5, abs=0.1)


def test_a_model_that_needs_values_runs_on_the_cpu():
    config = 'mask2former_dat-pp-tiny_8xb2-lsj-50e_coco-panoptic.py'
    path = CONFIGS / '../projects/dat_systems/configs' / config
    model = build_model(read_config(str(path), {'model.panoptic_head.num_queries': 5}))

    parts = {part.name: part for part in measure(model, (64, 64))}

    assert parts['panoptic_head'].macs > 1e8
    assert parts['total'].macs == total_of(parts)
    assert (parts['total'].without, parts['total'].failure) == ((), '')


def of_mmdet(config):
    return Path(get_installed_path('mmdet'), '.mim', 'configs', config)


def test_heads_of_boxes_that_need_more_are_named_in_the_total():
    parts = measure_config(
        of_mmdet('point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py')
    )

    assert parts['roi_head.point_head'].macs is None
    assert parts['total'].without == ('roi_head.point_head',)
    assert parts['total'].failure == 'needs other inputs than boxes'
    assert parts['total'].macs == total_of(parts)


def test_the_semantic_head_of_a_panoptic_detector_is_counted():
    parts = measure_config(of_mmdet('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'))

    assert parts['semantic_head'].macs > 1e8
    assert parts['total'].without == ()


def test_a_detector_whose_heads_fail_is_counted_up_to_its_neck():
    parts = measure_config(of_mmdet('sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py'))

    assert parts['roi_head.bbox_head'].macs is None
    assert parts['total'].without == ('rpn_head', 'roi_head')
    assert parts['total'].failure.startswith('NotImplementedError: ')
    assert parts['total'].macs == parts['backbone'].macs + parts['neck'].macs


def test_a_segmentor_is_counted_without_its_auxiliary_head():
    config = 'biformer/upernet_biformer-nano_1xb8-1600i_digits.py'

    parts = measure_config(config, (128, 128))

    assert parts['decode_head'].macs > 0
    assert parts['auxiliary_head'].macs is None
    assert parts['total'].without == ('auxiliary_head',)
    assert parts['total'].failure == ''  # training only
    assert parts['total'].macs == total_of(parts)


def test_a_head_in_a_dict_is_counted():
    parts = measure(create_model('biformer-nano', num_classes=7), (64, 64))

    head, total = parts[-2:]
    assert (head.name, head.macs) == ('head', 256 * 7)
    assert total.without == ()


def test_a_flop_is_half_a_mac():
    total = measure(nn.Conv2d(3, 6, 1), (8, 10))[-1]

    assert (total.macs, total.flops) == (3 * 6 * 80, 2 * 3 * 6 * 80)


@pytest.mark.parametrize(
    ('count', 'text'),
    [
        (0, '0'),
        (512, '512'),
        (25_600, '25.6 k'),
        (1_517_002, '1.52 M'),
        (13_142_760, '13.1 M'),
        (139_900_000_000, '139.9 G'),
        (1_008_900_000_000, '1.01 T'),
    ],
)
def test_counts_are_formatted_with_a_unit(count, text):
    assert format_count(count) == text


def test_macs_of_a_run_equal_those_on_the_meta_device():
    backbone, x = DAT('nano').eval(), torch.rand(1, 3, 64, 64)

    assert count_macs(lambda: backbone(x)) == measure(backbone, (64, 64))[-1].macs
