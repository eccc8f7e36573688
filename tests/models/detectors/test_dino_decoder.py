import pytest
import torch
from mmdet.models.layers import MLP, DinoTransformerDecoder, inverse_sigmoid
from mmdet.models.layers.transformer import dino_layers
from mmengine.registry import DefaultScope
from torch import nn

from mmsparse.models import FocusDETRHead
from mmsparse.models.detectors.dino_decoder import DinoDecoder

SIZES = ((5, 7), (3, 4))
TOKENS = 5 * 7 + 3 * 4


def arguments(width):
    heads = dict(embed_dims=width, num_heads=4, dropout=0.0)
    layer = dict(
        self_attn_cfg=dict(heads),
        cross_attn_cfg=dict(heads, num_levels=2),
        ffn_cfg=dict(embed_dims=width, feedforward_channels=12),
    )
    return dict(num_layers=2, layer_cfg=layer, post_norm_cfg=None)


def random_weights(module):
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=float('norm' in name), std=0.1)
    return module.eval()


def inputs(width):
    torch.manual_seed(1)
    return dict(
        query=torch.randn(2, 6, width),
        value=torch.randn(2, TOKENS, width),
        key_padding_mask=torch.rand(2, TOKENS) < 0.3,
        self_attn_mask=torch.eye(6).bool(),
        reference_points=torch.rand(2, 6, 4),
        spatial_shapes=torch.tensor(SIZES),
        level_start_index=torch.tensor([0, 35]),
        valid_ratios=torch.rand(2, 2, 2),
        reg_branches=random_weights(nn.ModuleList(nn.Linear(width, 4) for _ in '123')),
    )


with_mmdet = pytest.mark.skipif(
    DinoTransformerDecoder(**arguments(32)).ref_point_head.layers[0].in_features != 64,
    reason='onedl-mmdetection encodes boxes with twice as many features as mmdet',
)


@with_mmdet
def test_the_decoder_equals_mmdets_at_width_256():
    decoder, reference = (
        DinoDecoder(**arguments(256)),
        DinoTransformerDecoder(**arguments(256)),
    )
    reference.load_state_dict(random_weights(decoder).state_dict())
    given = inputs(256)

    actual = decoder(**given, level_sizes=SIZES)

    for value, expected in zip(actual, reference.eval()(**given), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('width', [16, 48])
def test_a_coordinate_has_half_as_many_features_as_the_width(width):
    decoder = random_weights(DinoDecoder(**arguments(width)))

    states, boxes = decoder(**inputs(width), level_sizes=SIZES)

    assert decoder.ref_point_head.layers[0].in_features == 2 * width
    assert states.shape == (2, 2, 6, width)
    assert boxes.shape == (3, 2, 6, 4)


@with_mmdet
def test_the_decoder_is_the_same_where_dino_encodes_coordinates_differently(
    monkeypatch,
):
    """Imitate onedl-mmdetection: C features per coordinate, an MLP of 4 C inputs."""
    width = 32
    expected = random_weights(DinoDecoder(**arguments(width)))
    original = DinoTransformerDecoder._init_layers
    encode = dino_layers.coordinate_to_encoding

    def init_layers(self):
        original(self)
        self.ref_point_head = MLP(4 * self.embed_dims, self.embed_dims, width, 2)

    monkeypatch.setattr(DinoTransformerDecoder, '_init_layers', init_layers)
    monkeypatch.setattr(
        dino_layers, 'coordinate_to_encoding', lambda x: encode(x, num_feats=width)
    )
    imitation = DinoTransformerDecoder(**arguments(width))
    decoder = random_weights(DinoDecoder(**arguments(width)))

    assert imitation.ref_point_head.layers[0].in_features == 4 * width
    imitation(**inputs(width))  # the imitation runs
    decoder.load_state_dict(expected.state_dict())
    given = inputs(width)
    torch.testing.assert_close(
        decoder(**given, level_sizes=SIZES), expected(**given, level_sizes=SIZES)
    )


def test_the_head_takes_logits_of_boxes_with_the_eps_of_detrex():
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = FocusDETRHead(
            num_classes=3,
            embed_dims=8,
            num_pred_layer=2,
            loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True),
            train_cfg=None,
        )
    states = torch.randn(2, 1, 5, 8)
    corner = torch.tensor([[0.0, 1e-4, 0.5, 1.0]]).expand(1, 5, 4)
    references = [corner.clone().requires_grad_() for _ in range(3)]

    _, boxes = head(states, references)

    for i in range(2):
        start = inverse_sigmoid(corner, eps=1e-3)
        expected = (head.reg_branches[i](states[i]) + start).sigmoid()
        torch.testing.assert_close(boxes[i], expected)
