import copy
from pathlib import Path

import pytest
import torch
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from tiny_detectors import build_model, make_images, sparse_config

from mmsparse.apis import build_model as build_from_config
from mmsparse.apis import read_config
from mmsparse.models.detectors import TokenSelector
from mmsparse.ops.pyramid import valid_sizes

CONFIGS = Path(__file__).parents[3] / 'configs' / 'sparse_detr'
SIZES = [(96, 128), (64, 120)]
OPTIONS = {
    'default': {},
    'per image': dict(per_image=True),
    'valid pool': dict(global_pool='valid'),
    'scored border': dict(score_border=True),
    'exact map': dict(exact_map=True),
    'all tokens': dict(keep_ratio=1.0),
    'queries of Deformable DETR': dict(query_content='box', class_agnostic=True),
    'no encoder losses': dict(encoder_losses=False),
}
SHAPES = {
    '3 levels': dict(levels=3),
    '5 levels': dict(levels=5),
    'width 36': dict(width=36),
    '1 layer, 3 layers': dict(encoder=1, decoder=3),
    '1 class': dict(classes=1),
}


def build(**changes):
    return build_model(sparse_config(**changes))


def total(losses):
    return sum(
        torch.stack(x).sum() if isinstance(x, list) else x
        for name, x in losses.items()
        if 'loss' in name
    )


def assert_finite_gradients(detector):
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def encoded(detector, inputs, samples):
    given, _ = detector.pre_transformer(detector.extract_feat(inputs), samples)
    return {**given, **detector.forward_encoder(**given)}


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize('boxes', [[0, 0], [0, 1]], ids=str)
def test_every_parameter_gets_a_finite_gradient(options, boxes):
    detector = build(**options).train()

    losses = detector.loss(*make_images(SIZES, boxes))
    total(losses).backward()

    assert losses['loss_dam'] > 0
    assert 0 < losses['corr'] <= 1
    assert_finite_gradients(detector)


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_any_number_of_levels_layers_channels_and_classes_works(shape):
    detector = build(**shape).train()

    losses = detector.loss(*make_images(SIZES, classes=1))
    total(losses).backward()
    results = detector.eval().predict(*make_images(SIZES))

    assert_finite_gradients(detector)
    layers = shape.get('encoder', 2) - 1
    assert [x for x in losses if x.startswith('e') and x.endswith('.loss_cls')] == [
        f'e{i}.loss_cls' for i in range(layers)
    ]
    for sample in results:
        assert sample.pred_instances.scores.isfinite().all()


@pytest.mark.parametrize('side', [32, 8])
def test_images_with_fewer_tokens_than_queries_or_boxes_work(side):
    detector = build(num_queries=50).train()
    inputs, samples = make_images([(side, side)], boxes=12)

    with pytest.warns(UserWarning, match='too small for num_queries=50'):
        total(detector.loss(inputs, samples)).backward()
    (result,) = detector.eval().predict(inputs, samples)

    assert_finite_gradients(detector)
    tokens = {32: 16 + 4 + 1 + 1, 8: 4}[side]
    assert len(result.pred_instances) == min(20, 3 * tokens)


@pytest.mark.parametrize('sizes', [[(96, 128)] * 2, SIZES], ids=['full', 'padded'])
def test_with_all_tokens_it_is_the_encoder_of_deformable_detr(sizes):
    detector = build(keep_ratio=1.0).eval()
    cfg = sparse_config()['encoder']
    dense = DeformableDetrTransformerEncoder(**cfg).eval()
    dense.load_state_dict(detector.encoder.state_dict())

    seen = encoded(detector, *make_images(sizes))
    names = ('spatial_shapes', 'level_start_index', 'valid_ratios')
    expected = dense(
        query=seen['feat'],
        query_pos=seen['feat_pos'],
        key_padding_mask=seen['feat_mask'],
        **{name: seen[name] for name in names},
    )

    memory = seen['memory']
    if seen['feat_mask'] is not None:  # Deformable DETR's updates the padding, too
        memory, expected = memory[~seen['feat_mask']], expected[~seen['feat_mask']]
    torch.testing.assert_close(memory, expected, atol=1e-5, rtol=1e-5)


def test_on_the_same_canvas_detections_do_not_change_with_the_batch():
    detector = build().eval()
    inputs, samples = make_images([(96, 128), (48, 64), (80, 40)])

    together = detector.predict(inputs, copy.deepcopy(samples))

    for i, expected in enumerate(together):
        (alone,) = detector.predict(inputs[i : i + 1], [copy.deepcopy(samples[i])])
        actual, expected = alone.pred_instances, expected.pred_instances
        assert torch.equal(actual.labels, expected.labels)
        torch.testing.assert_close(actual.scores, expected.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(actual.bboxes, expected.bboxes, atol=1e-3, rtol=0)


def test_queries_of_deformable_detr_equal_those_of_mmdet():
    detector = build(width=256, query_content='box', class_agnostic=True).train()
    inputs, samples = make_images(SIZES)
    seen = encoded(detector, inputs, samples)
    shared = {x: seen[x] for x in ('memory', 'memory_mask', 'spatial_shapes')}

    expected = DeformableDETR.pre_decoder(detector, **shared)
    own = {x: seen[x] for x in ('tokens', 'states', 'level_sizes')}
    actual = detector.pre_decoder(**shared, **own)

    for mine, mmdets in zip(actual, expected, strict=True):
        for name, value in mmdets.items():
            torch.testing.assert_close(mine[name], value)


@pytest.mark.parametrize('per_image', [True, False])
def test_per_image_losses_of_encoder_layers_do_not_change_with_the_batch(per_image):
    detector = build(per_image=per_image).train()
    inputs, samples = make_images([(96, 128), (24, 32)], [0, 3], canvas=(96, 128))

    together = detector.loss(inputs, copy.deepcopy(samples))
    alone = [
        detector.loss(inputs[i : i + 1], [copy.deepcopy(samples[i])]) for i in (0, 1)
    ]

    names = ('loss_cls', 'loss_bbox', 'loss_iou') if per_image else ('loss_cls',)
    for name in names:
        # The first image has no boxes: its losses are divided by 1, then by 3.
        apart = alone[0][f'e0.{name}'] / 3 + alone[1][f'e0.{name}']
        difference = (together[f'e0.{name}'] - apart).abs()
        assert (difference < 1e-4) == per_image


def test_losses_are_divided_by_the_number_of_boxes_matched_or_not():
    """Twice as many boxes as predictions: every prediction is matched."""
    detector = build(num_queries=4).train()
    head, (_, (sample,)) = detector.bbox_head, make_images([(96, 128)], boxes=8)
    logits, boxes = torch.randn(1, 4, 3), torch.rand(1, 4, 4)
    truth = [sample.gt_instances], [sample.metainfo]

    *_, (targets,), (weights,), count, _ = head.get_targets(logits, boxes, *truth)
    loss = head.loss_by_feat_single(logits, boxes, *truth)[1]

    assert count == 8
    assert weights.all()
    expected = 5 * (boxes[0] - targets).abs().sum() / 8  # weight 5
    torch.testing.assert_close(loss, expected)


def test_the_token_selector_gets_gradients_from_its_own_loss_alone():
    detector = build().train()
    losses = detector.loss(*make_images(SIZES))
    own = losses.pop('loss_dam')
    selector = list(detector.token_selector.parameters())
    neck = list(detector.neck.parameters())

    from_others = torch.autograd.grad(
        total(losses), selector, allow_unused=True, retain_graph=True
    )
    from_its_own = torch.autograd.grad(own, [*selector, *neck])

    assert all(gradient is None for gradient in from_others)
    assert all(gradient.any() for gradient in from_its_own)


def test_the_keep_ratio_may_be_changed_after_training():
    detector = build().eval()
    inputs, samples = make_images(SIZES)

    counts = []
    for detector.keep_ratio in (0.1, 0.5):
        seen = encoded(detector, inputs, samples)
        counts.append(seen['tokens'].selection.kept)

    assert counts == [(26,), (129,)]  # of 256 tokens


@pytest.mark.parametrize('pool', ['all', 'valid'])
def test_the_scorer_averages_all_levels_together(pool):
    selector, x = TokenSelector(8, pool), torch.randn(2, 20, 8)
    ignored = torch.ones(2, 20, dtype=torch.bool)
    ignored[:, 3] = False

    logits = selector(x, ((4, 4), (2, 2)), ignored)

    tokens = selector.layer1(x)
    counted = tokens if pool == 'all' else tokens[:, 3:4]
    mean = counted[..., 4:].mean(1, keepdim=True).expand(-1, 20, -1)
    expected = selector.layer2(torch.cat([tokens[..., :4], mean], -1))[..., 0]
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(keep_ratio=0.0), r'keep_ratio must be in \(0, 1\]; got \(0.0,\)'),
        (dict(keep_ratio=1.1), r'keep_ratio must be in \(0, 1\]; got \(1.1,\)'),
        (dict(global_pool='none'), "global_pool must be one of .* got 'none'"),
        (dict(query_content='all'), "query_content must be one of .* got 'all'"),
        (dict(as_two_stage=False), 'as_two_stage must be true; got True and False'),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_another_head_raises_an_error():
    head = dict(sparse_config()['bbox_head'], type='DeformableDETRHead')

    with pytest.raises(ValueError, match='SparseDETRHead; got DeformableDETRHead'):
        build(bbox_head=head)


def test_building_does_not_modify_the_config():
    given = sparse_config()
    before = copy.deepcopy(given)

    with DefaultScope.overwrite_default_scope('mmdet'):
        detectors = [MODELS.build(given) for _ in range(2)]

    assert given == before
    # Two decoder layers, the selection of queries, one encoder layer of two.
    assert [len(x.bbox_head.cls_branches) for x in detectors] == [4, 4]


def test_weights_are_initialized_as_released():
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(sparse_config(width=64))
    detector.init_weights()

    limit = (6 / (64 + 64)) ** 0.5
    for linear in (detector.token_selector.layer1[1], detector.memory_trans_fc):
        assert 0.9 * limit < linear.weight.abs().max() <= limit
    limit = (6 / (64 + 128)) ** 0.5
    assert 0.9 * limit < detector.pos_trans_fc.weight.abs().max() <= limit
    for box_head, class_head in zip(
        detector.bbox_head.reg_branches, detector.bbox_head.cls_branches, strict=True
    ):
        assert not box_head[-1].weight.any()
        assert not box_head[-1].bias.any()
        first = detector.bbox_head.cls_branches[0]
        assert torch.equal(class_head.weight, first.weight)
        bias = class_head.bias.sigmoid()
        torch.testing.assert_close(bias, torch.full_like(bias, 0.01))


def test_autocast_leaves_scores_and_attention_map_in_float32():
    detector = build().train()
    inputs, samples = make_images(SIZES)
    exact = encoded(detector, inputs, samples)['tokens'].logits

    with torch.autocast('cpu', torch.bfloat16):
        logits = encoded(detector, inputs, samples)['tokens'].logits
        losses = detector.loss(inputs, samples)
        total(losses).backward()

    assert logits.dtype == losses['corr'].dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.1)
    assert_finite_gradients(detector)


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_the_encoder_never_synchronizes_with_the_device(options):
    """Meta tensors raise where a value is read, which on a GPU would wait for it."""
    detector = build(**options).to('meta').eval()
    level_sizes = ((12, 16), (6, 8), (3, 4), (2, 2))
    sizes = valid_sizes(level_sizes, (96, 128), SIZES)
    given = dict(
        feat=torch.empty(2, 256, 16),
        feat_pos=torch.empty(2, 256, 16),
        feat_mask=torch.empty(2, 256, dtype=torch.bool),
        spatial_shapes=torch.empty(4, 2, dtype=torch.long),
        level_start_index=torch.empty(4, dtype=torch.long),
        valid_ratios=torch.empty(2, 4, 2),
    )

    out = detector.forward_encoder(
        **{name: x.to('meta') for name, x in given.items()},
        level_sizes=level_sizes,
        num_valid=sizes.prod(-1).sum(-1),
    )

    assert out['memory'].shape == (2, 256, 16)


def test_the_nano_config_takes_a_training_step():
    name = 'sparse-detr_biformer-nano_1xb4-4e_digits.py'
    detector = build_from_config(read_config(str(CONFIGS / name)))
    detector.init_weights()

    total(detector.train().loss(*make_images([(128, 128)] * 2, classes=10))).backward()

    assert_finite_gradients(detector)
    seen = encoded(detector, *make_images([(128, 128)]))
    assert seen['tokens'].selection.kept == (101,)  # of 336
