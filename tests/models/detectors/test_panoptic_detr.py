import copy

import pytest
import torch
from tiny_detectors import Pyramid
from tiny_panoptic import build_panoptic, make_segments, panoptic_config

from mmsparse.models.detectors.panoptic_detr import match_queries, padded_masks

SIZES = ((96, 128), (80, 150))


def total(losses):
    return sum(sum(x) if isinstance(x, list) else x for x in losses.values())


def test_every_parameter_is_trained():
    model = build_panoptic().train()

    losses = model.loss(*make_segments(SIZES))
    total(losses).backward()

    names = {'loss_cls', 'loss_bbox', 'loss_iou'}
    expected = names | {f'd0.{name}' for name in names} | {'loss_mask', 'loss_dice'}
    assert set(losses) == expected
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_masks_of_matched_queries_are_those_of_all_at_their_places():
    model = build_panoptic().eval()
    inputs, samples = make_segments(SIZES, [3, 1])

    losses = model.loss(inputs, samples)

    logits, boxes, masks = model._forward(inputs, samples)
    chosen, targets = [], []
    for i, sample in enumerate(samples):
        truth, meta = sample.gt_instances, sample.metainfo
        queries, objects = match_queries(
            model.bbox_head, logits[-1, i], boxes[-1, i], truth, meta
        )
        chosen.append(masks[i][queries])
        targets.append(padded_masks(truth, objects, meta))
        assert sorted(objects.tolist()) == list(range(len(truth)))
    expected = model.mask_head.loss(chosen, targets, num_objects=4)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('objects', [[0, 2], [0, 0], [9, 1]], ids=str)
def test_any_number_of_objects_trains(objects):
    """None in one or in all images, and more than the six queries."""
    model = build_panoptic().train()

    losses = model.loss(*make_segments(SIZES, objects))
    total(losses).backward()

    assert total(losses).isfinite()
    assert bool(losses['loss_mask']) == any(objects)
    for name, parameter in model.mask_head.named_parameters():
        assert parameter.grad is not None, name


def test_masks_take_no_part_in_the_matching():
    model = build_panoptic().eval()
    inputs, samples = make_segments(SIZES)
    changed = copy.deepcopy(samples)
    for sample in changed:
        sample.gt_instances.masks.masks[:] = 1

    first, second = (model.loss(inputs, x) for x in (samples, changed))

    assert first['loss_bbox'] == second['loss_bbox']
    assert first['loss_mask'] != second['loss_mask']


@pytest.mark.parametrize('frozen_eval', [False, True])
def test_a_frozen_detector_stays_as_it_is(frozen_eval):
    model = build_panoptic(freeze_detector=True, frozen_eval=frozen_eval)
    assert model.train() is model
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    losses = model.loss(*make_segments(SIZES))
    total(losses).backward()
    optimizer.step()

    assert set(losses) == {'loss_mask', 'loss_dice'}
    assert model.encoder.training is not frozen_eval
    assert model.mask_head.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) is not name.startswith('mask_head.')


def test_segments_and_instances_have_the_size_of_the_image():
    model = build_panoptic().eval()
    inputs, samples = make_segments(SIZES)
    for sample in samples:
        height, width = sample.img_shape
        sample.set_metainfo(
            dict(ori_shape=(2 * height, 2 * width), scale_factor=(0.5, 0.5))
        )

    with torch.no_grad():
        results = model.predict(inputs, samples)

    for result, (height, width) in zip(results, SIZES, strict=True):
        assert result.pred_panoptic_seg.sem_seg.shape == (1, 2 * height, 2 * width)
        found = result.pred_instances
        assert found.masks.shape[1:] == (2 * height, 2 * width)
        assert found.bboxes.shape == (len(found), 4)
        assert (found.labels < 2).all()


def test_an_image_alone_and_in_a_batch_of_its_size_is_the_same():
    model = build_panoptic().eval()
    inputs, samples = make_segments((SIZES[0], SIZES[0]))

    with torch.no_grad():
        *_, both = model._forward(inputs, samples)
        *_, alone = model._forward(inputs[1:], samples[1:])

    torch.testing.assert_close(both[1], alone[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16])
def test_half_precision_trains(dtype):
    model = build_panoptic().train()

    with torch.autocast('cpu', dtype):
        losses = model.loss(*make_segments(SIZES))

    assert total(losses).isfinite()
    assert losses['loss_mask'].dtype == torch.float32


def test_the_model_says_what_it_is():
    model = build_panoptic()

    assert (model.num_things_classes, model.num_stuff_classes) == (2, 2)
    assert model.num_classes == 4
    assert model.with_panoptic_fusion_head


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(bbox_head=None), r'bbox_head must be .*objects with boxes; got None\.'),
        (
            dict(panoptic_fusion_head=dict(type='mmsparse.DETRPanopticFusionHead')),
            r'bbox_head\.num_classes must be .*, 133; got 4\.',
        ),
        (
            dict(mask_head=dict(type='mmsparse.DETRPanopticHead')),
            r'mask_head\.embed_dims must be .*, 128; got 256\.',
        ),
        (
            dict(backbone=dict(type=Pyramid)),
            r'backbone\.out_indices must have 4 stages: .*; got \(1, 2, 3\)\.',
        ),
    ],
    ids=['no boxes', 'classes', 'width', 'three maps'],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_panoptic(**changes)


def test_other_channels_of_feature_maps_are_refused():
    head = dict(panoptic_config()['mask_head'], feat_channels=(4, 4, 8))
    model = build_panoptic(mask_head=head)

    with pytest.raises(ValueError, match=r', \(4, 4, 4\); got \(4, 4, 8\)\.'):
        model.loss(*make_segments(SIZES))


def test_samples_without_masks_are_refused():
    inputs, samples = make_segments(SIZES)
    for sample in samples:
        del sample.gt_instances.masks

    with pytest.raises(ValueError, match='have masks: load them by .*Segments'):
        build_panoptic().loss(inputs, samples)
