import copy
import warnings
from pathlib import Path

import pytest
import torch
from mmdet.models.detectors import DINO
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

from mmsparse.apis import build_model, read_config
from mmsparse.models import FocusDETR
from mmsparse.ops.pyramid import valid_sizes
from mmsparse.ops.tokens import kept_by_layer

CONFIGS = Path(__file__).parents[3] / 'configs' / 'focus_detr'
SIZES = [(96, 128), (64, 120)]
OPTIONS = {
    'default': {},
    'current values': dict(value_source='current'),
    'probabilities': dict(object_score='prob'),
    'foreground alone': dict(object_score='foreground'),
    'class alone': dict(object_score='class'),
    'no top-down': dict(top_down=False),
    'per image': dict(per_image=True),
    'valid pool': dict(global_pool='valid'),
    'scored border': dict(score_border=True),
    'no object attention': dict(num_object_tokens=0),
    'all tokens': dict(keep_ratio=1.0, cascade=(1.0, 1.0)),
    'growing cascade': dict(cascade=(0.4, 1.0)),
}
SHAPES = {
    '3 levels': dict(levels=3),
    '5 levels': dict(levels=5),
    'width 36': dict(width=36),
    'width 256': dict(width=256),
    '1 layer, 3 layers': dict(encoder=1, decoder=3),
    '6 layers, 1 layer': dict(encoder=6, decoder=1),
    '1 class': dict(classes=1),
    '90 classes': dict(classes=90),
}


def total(losses):
    values = []
    for loss in losses.values():
        values += loss if isinstance(loss, list) else [loss]
    return sum(value.sum() for value in values)


def assert_finite_gradients(detector):
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def encoded(detector, inputs, samples):
    """Return inputs, selection and outputs of the encoder."""
    seen = {}

    def note(module, args, kwargs):
        seen['selection'] = kwargs['selection']

    handle = detector.encoder.register_forward_pre_hook(note, with_kwargs=True)
    given, _ = detector.pre_transformer(detector.extract_feat(inputs), samples)
    seen.update(given, **detector.forward_encoder(**given))
    handle.remove()
    return seen


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize('boxes', [[0, 0], [1, 1], [0, 4]], ids=str)
def test_every_parameter_gets_a_finite_gradient(build, images, options, boxes):
    detector = build(**options).train()

    losses = detector.loss(*images(SIZES, boxes))
    total(losses).backward()

    assert losses['loss_foreground'] > 0
    assert_finite_gradients(detector)


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_any_number_of_levels_layers_channels_and_classes_works(build, images, shape):
    detector = build(**shape).train()

    total(detector.loss(*images(SIZES, classes=1))).backward()
    results = detector.eval().predict(*images(SIZES))

    assert_finite_gradients(detector)
    for sample in results:
        assert sample.pred_instances.bboxes.shape[1] == 4
        assert sample.pred_instances.scores.isfinite().all()


def test_losses_and_gradients_are_finite_on_80_random_batches(build, images):
    detector = build(encoder=1, decoder=1).train()
    generator = torch.Generator().manual_seed(7)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(80):
        sizes = [(draw(24, 160), draw(24, 160)) for _ in range(draw(1, 3))]
        boxes = [draw(0, 20) for _ in sizes]
        losses = detector.loss(*images(sizes, boxes, generator=generator))
        loss = total(losses)
        detector.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert_finite_gradients(detector)


@pytest.mark.parametrize('sizes', [[(96, 128)] * 2, SIZES], ids=['full', 'padded'])
def test_all_tokens_without_object_attention_equal_the_encoder_of_dino(
    build, images, sizes
):
    detector = build(
        keep_ratio=1.0,
        cascade=(1.0, 1.0),
        num_object_tokens=0,
        value_source='current',
    ).eval()
    cfg = build().encoder.layer_cfg
    dino = DeformableDetrTransformerEncoder(num_layers=2, layer_cfg=cfg).eval()
    dino.load_state_dict(detector.encoder.state_dict())

    seen = encoded(detector, *images(sizes))
    expected = dino(
        query=seen['feat'],
        query_pos=seen['feat_pos'],
        key_padding_mask=seen['feat_mask'],
        spatial_shapes=seen['spatial_shapes'],
        level_start_index=seen['level_start_index'],
        valid_ratios=seen['valid_ratios'],
    )

    memory = seen['memory']
    if seen['feat_mask'] is not None:  # DINO's updates the padding, too
        memory, expected = memory[~seen['feat_mask']], expected[~seen['feat_mask']]
    torch.testing.assert_close(memory, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_padding_and_tokens_that_are_not_kept_do_not_change(build, images, options):
    detector = build(**options).eval()
    detector.token_selector.layer2[4].bias.data.fill_(-5.0)  # padding would win

    seen = encoded(detector, *images([(96, 128), (40, 56)]))

    changed = (seen['memory'] != seen['feat']).any(-1)
    kept = kept_by_layer(seen['selection'], changed.shape[1]).any(1)
    assert torch.equal(changed, kept)
    assert not changed[seen['feat_mask']].any()


def test_the_number_of_valid_tokens_agrees_with_the_mask(build, images):
    detector = build().eval()

    seen = encoded(detector, *images([(97, 131), (50, 131), (97, 9)]))

    assert torch.equal(seen['num_valid'], (~seen['feat_mask']).sum(1))


@pytest.mark.parametrize('padding', [(0, 0), (16, 40)], ids=['fitting', 'padded'])
def test_per_image_detections_do_not_change_with_the_batch(build, images, padding):
    detector = build(per_image=True).eval()
    canvas = tuple(x + more for x, more in zip((96, 128), padding, strict=True))
    inputs, samples = images([(96, 128), (48, 64), (80, 40)], canvas=canvas)

    together = detector.predict(inputs, copy.deepcopy(samples))

    for i, expected in enumerate(together):
        (alone,) = detector.predict(inputs[i : i + 1], [copy.deepcopy(samples[i])])
        actual, expected = alone.pred_instances, expected.pred_instances
        assert torch.equal(actual.labels, expected.labels)
        torch.testing.assert_close(actual.scores, expected.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(actual.bboxes, expected.bboxes, atol=1e-3, rtol=0)


def test_by_default_the_largest_image_decides_how_many_tokens_the_others_keep(
    build, images
):
    detector = build().eval()
    inputs, samples = images([(96, 128), (48, 64)])

    together = encoded(detector, inputs, samples)
    alone = [encoded(detector, inputs[i : i + 1], samples[i : i + 1]) for i in (0, 1)]

    torch.testing.assert_close(
        together['memory'][:1], alone[0]['memory'], atol=1e-5, rtol=1e-4
    )
    assert (together['memory'][1:] - alone[1]['memory']).abs().max() > 1e-2


@pytest.mark.parametrize('boxes', [[3, 1], [0, 0]], ids=str)
@pytest.mark.parametrize('training', [False, True])
def test_queries_equal_those_of_mmdets_dino(build, images, training, boxes):
    detector = build().train(training)
    inputs, samples = images(SIZES, boxes)
    seen = encoded(detector, inputs, samples)
    names = ('memory', 'memory_mask', 'spatial_shapes')
    memory = {name: seen[name] for name in names}
    focused = ('proposals', 'foreground_logits', 'level_sizes')

    torch.manual_seed(1)
    expected = DINO.pre_decoder(detector, **memory, batch_data_samples=samples)
    torch.manual_seed(1)
    actual = detector.pre_decoder(
        **memory, **{name: seen[name] for name in focused}, batch_data_samples=samples
    )

    for own, dino in zip(actual, expected, strict=True):
        assert own.keys() >= dino.keys()
        for name, value in dino.items():
            torch.testing.assert_close(own[name], value)
    assert set(actual[1]) - set(expected[1]) == (
        {'foreground_logits', 'level_sizes'} if training else set()
    )


def test_the_token_selector_gets_gradients_from_the_foreground_loss_alone(
    build, images
):
    detector = build().train()
    losses = detector.loss(*images(SIZES))
    own = losses.pop('loss_foreground')
    selector = list(detector.token_selector.parameters())

    from_others = torch.autograd.grad(
        total(losses), selector, allow_unused=True, retain_graph=True
    )
    from_its_own = torch.autograd.grad(own, selector)

    assert all(gradient is None for gradient in from_others)
    assert all(gradient.any() for gradient in from_its_own)


@pytest.mark.parametrize('side', [32, 8])
def test_fewer_tokens_than_queries_work_with_one_warning(build, images, side):
    detector = build(num_queries=50, cascade=(1.0, 0.5)).train()
    inputs, samples = images([(side, side)], boxes=3)

    with pytest.warns(UserWarning, match='too small for num_queries=50') as caught:
        total(detector.loss(inputs, samples)).backward()
        (result,) = detector.eval().predict(inputs, samples)

    assert len(caught) == 1
    assert_finite_gradients(detector)
    tokens = {32: 16 + 4 + 1 + 1, 8: 4}[side]
    assert len(result.pred_instances) == min(20, 3 * tokens)
    assert (result.pred_instances.scores > 0).all()


def test_enough_tokens_give_no_warning(build, images):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        build().eval().predict(*images(SIZES))


def test_images_too_small_to_keep_a_token_raise_an_error(build, images):
    detector = build(encoder=6).eval()

    with pytest.raises(ValueError, match='keep_ratio=0.5 and cascade='):
        detector.predict(*images([(8, 8)]))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(keep_ratio=0), r'keep_ratio must be in \(0, 1\]; got \(0,\)'),
        (dict(keep_ratio=1.5), r'keep_ratio must be in \(0, 1\]; got \(1.5,\)'),
        (dict(cascade=(0.5, 0)), r'cascade must be in \(0, 1\]; got \(0.5, 0\)'),
        (dict(cascade=(1.0,)), r'encoder.num_layers=2; got \(1.0,\)'),
        (dict(cascade=(1, 1, 1)), r'encoder.num_layers=2; got \(1, 1, 1\)'),
        (dict(value_source='memory'), "value_source must be one of .* got 'memory'"),
        (dict(object_score='max'), "object_score must be one of .* got 'max'"),
        (dict(global_pool='none'), "global_pool must be one of .* got 'none'"),
        (dict(num_object_tokens=-1), 'num_object_tokens must be at least 0; got -1'),
        (dict(num_feature_levels=3), r'num_feature_levels=3; got \(8, 16, 32, 64\)'),
    ],
    ids=lambda value: '-'.join(value) if isinstance(value, dict) else '',
)
def test_arguments_out_of_range_raise_an_error(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_head_without_foreground_loss_raises_an_error(build, config):
    head = dict(config()['bbox_head'], type='DINOHead')
    del head['loss_foreground']

    with pytest.raises(ValueError, match=r'mmsparse.FocusDETRHead; got DINOHead'):
        build(bbox_head=head)


@pytest.mark.parametrize('channels', [[8, 16, 32], [4, 4]], ids=str)
def test_a_neck_that_does_not_fit_the_backbone_raises_an_error_with_both_channels(
    build, config, images, channels
):
    detector = build(neck=dict(config()['neck'], in_channels=channels))

    with pytest.raises(ValueError, match='neck.in_channels must be') as caught:
        detector.predict(*images(SIZES))

    assert 'Pyramid with out_indices=(1, 2, 3) returns [4, 4, 4]' in str(caught.value)
    assert f'got in_channels={channels}' in str(caught.value)


def test_building_does_not_modify_the_config(config):
    given = config()
    before = copy.deepcopy(given)

    with DefaultScope.overwrite_default_scope('mmdet'):
        detectors = [MODELS.build(given) for _ in range(2)]

    assert given == before
    assert all(type(detector) is FocusDETR for detector in detectors)


def test_weights_are_initialized_as_released(build, config):
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(config(width=64))
    detector.init_weights()

    selector = detector.token_selector
    assert selector.alpha.abs().max() <= 0.3
    limit = (6 / (64 + 64)) ** 0.5
    for linear in (selector.layer1[1], detector.memory_trans_fc):
        assert 0.9 * limit < linear.weight.abs().max() <= limit
    offsets = detector.encoder.layers[0].self_attn.sampling_offsets
    assert not offsets.weight.any()
    assert offsets.bias.any()
    bias = detector.bbox_head.cls_branches[-1].bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))


def test_autocast_leaves_foreground_scores_in_float32(build, images):
    detector = build().train()
    inputs, samples = images(SIZES)
    exact = encoded(detector, inputs, samples)['foreground_logits']

    with torch.autocast('cpu', torch.bfloat16):
        logits = encoded(detector, inputs, samples)['foreground_logits']
        total(detector.loss(inputs, samples)).backward()

    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0.1)
    assert_finite_gradients(detector)


@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_the_encoder_never_synchronizes_with_the_device(build, options):
    """Meta tensors raise where a value is read, which on a GPU would wait for it."""
    detector = build(**options).to('meta').eval()
    level_sizes = ((12, 16), (6, 8), (3, 4), (2, 2))
    sizes = valid_sizes(level_sizes, (96, 128), SIZES)
    tokens = sum(height * width for height, width in level_sizes)
    given = dict(
        feat=torch.empty(2, tokens, 16),
        feat_pos=torch.empty(2, tokens, 16),
        feat_mask=torch.empty(2, tokens, dtype=torch.bool),
        spatial_shapes=torch.empty(4, 2, dtype=torch.long),
        level_start_index=torch.empty(4, dtype=torch.long),
        valid_ratios=torch.empty(2, 4, 2),
    )

    out = detector.forward_encoder(
        **{name: x.to('meta') for name, x in given.items()},
        level_sizes=level_sizes,
        num_valid=sizes.prod(-1).sum(-1),
    )

    assert out['memory'].shape == (2, tokens, 16)


def test_the_nano_config_takes_a_training_step(images):
    name = 'focus-detr_biformer-nano_1xb4-4e_digits.py'
    detector = build_model(read_config(str(CONFIGS / name)))
    torch.nn.init.normal_(detector.level_embed)  # mmdet leaves it uninitialized

    total(detector.train().loss(*images([(128, 128)] * 2, classes=10))).backward()

    assert_finite_gradients(detector)
    seen = encoded(detector, *images([(128, 128)]))
    assert seen['selection'].kept == (135, 67)
