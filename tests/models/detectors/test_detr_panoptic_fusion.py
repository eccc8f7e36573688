import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from PIL import Image

from mmsparse.models.detectors import DETRPanopticFusionHead
from mmsparse.models.detectors.detr_panoptic_fusion import _resize_like_pillow

CAT, DOG, GRASS, SKY, NOTHING = range(5)


def fusion(**settings):
    return DETRPanopticFusionHead(2, 2, settings)


def class_logits(*labels, sure=8.0):
    return sure * torch.nn.functional.one_hot(torch.tensor(labels), 5).float()


def sample(size, original=None, canvas=None):
    original = original or size
    scale = tuple(new / old for new, old in zip(size, original, strict=True))
    return DetDataSample(
        metainfo=dict(
            img_shape=size,
            ori_shape=original,
            batch_input_shape=canvas or size,
            scale_factor=scale[::-1],
        )
    )


def stripes(*widths, height=4, value=5.0):
    """Masks that lie next to each other, (K, height, sum of the widths)."""
    masks = torch.full((len(widths), height, sum(widths)), -value)
    start = 0
    for mask, width in zip(masks, widths, strict=True):
        mask[:, start : start + width] = value
        start += width
    return masks


def segment(head, labels, masks, **sizes):
    meta = sample(tuple(masks.shape[-2:]), **sizes).metainfo
    return head.segment(class_logits(*labels), masks, meta, rescale=True)


def test_each_pixel_goes_to_the_best_confident_query():
    logits = torch.cat([class_logits(CAT, NOTHING, DOG), class_logits(DOG, sure=1.0)])
    masks = stripes(3, 4, 5, 6)

    found = fusion().segment(logits, masks, sample((4, 18)).metainfo, rescale=True)

    assert found.labels.tolist() == [CAT, DOG]
    # Where no kept mask is large, the first of equal ones wins.
    assert found.ids[0].tolist() == [0] * 7 + [1] * 5 + [0] * 6


@pytest.mark.parametrize(('width', 'kept'), [(1, False), (2, True)])
def test_a_segment_of_at_most_four_pixels_is_removed(width, kept):
    found = segment(fusion(), (CAT, DOG, DOG), stripes(5, width, 5))

    assert len(found.labels) == 2 + kept
    assert (found.ids == found.ids[0]).all()
    counts = torch.bincount(found.ids[0]).tolist()
    assert counts == ([5, width, 5] if kept else [5 + width, 5])


def test_stuff_is_merged_as_released_or_joined():
    """The pixels of the second patch of sky go to the best of the remaining masks."""
    labels, masks = (SKY, CAT, SKY, DOG, DOG), stripes(4, 4, 4, 4, 4)
    masks[1, :, 8:12] = 1.0  # the cat is second best there

    released = segment(fusion(), labels, masks)
    joined = segment(fusion(merge_stuff='union'), labels, masks)

    assert released.labels.tolist() == joined.labels.tolist() == [SKY, CAT, DOG, DOG]
    assert released.ids[0].tolist() == [0] * 4 + [1] * 8 + [2] * 4 + [3] * 4
    assert joined.ids[0].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize(
    'labels', [(NOTHING, NOTHING), (CAT,), (GRASS, GRASS)], ids=str
)
def test_few_segments(labels):
    masks = stripes(*(4 for _ in labels))
    head = fusion(instance_on=False)

    (result,) = head.predict(
        [class_logits(*labels)], [masks], [sample(tuple(masks.shape[-2:]))], True
    )

    sem_seg = result['pan_results'].sem_seg
    assert sem_seg.shape == (1, *masks.shape[-2:])
    assert sem_seg.dtype == torch.int32
    expected = {NOTHING: 4, CAT: 1000 + CAT, GRASS: GRASS}[labels[0]]
    assert sem_seg.unique().tolist() == [expected]
    assert 'ins_results' not in result


def test_things_are_numbered_and_stuff_is_not():
    masks = stripes(3, 3, 3, 3)

    (result,) = fusion().predict(
        [class_logits(DOG, SKY, CAT, DOG)], [masks], [sample((4, 12))]
    )

    row = result['pan_results'].sem_seg[0, 0, ::3]
    assert row.tolist() == [1001, SKY, 2000, 3001]


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ((800, 7), (427, 9)),
        ((93, 117), (70, 88)),
        ((64, 64), (640, 5)),
        ((9, 9), (9, 9)),
    ],
    ids=str,
)
def test_segments_are_resized_as_by_pillow(old, new):
    ids = torch.randint(200, old)

    resized = _resize_like_pillow(ids, new)

    image = Image.fromarray(ids.byte().numpy())
    expected = image.resize(new[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(resized.numpy(), np.asarray(expected))


def test_padding_does_not_change_the_segments():
    """The released code stretches the padded masks to the image."""
    logits, masks = class_logits(CAT, SKY), torch.randn(2, 6, 8)
    padded = torch.nn.functional.pad(masks, (0, 5, 0, 3), value=9.0)
    head = fusion()

    alone = head.predict([logits], [masks], [sample((24, 32), (51, 67))], True)
    batch = head.predict(
        [logits], [padded], [sample((24, 32), (51, 67), (36, 52))], True
    )

    # The last rows and columns of the enlarged masks mix with the padding.
    same = alone[0]['pan_results'].sem_seg == batch[0]['pan_results'].sem_seg
    assert same.shape == (1, 51, 67)
    assert same[:, :45, :60].all()


def test_instances_are_the_best_things_with_their_boxes():
    logits = torch.cat(
        [class_logits(SKY, CAT), class_logits(DOG, sure=2.0), class_logits(NOTHING)]
    )
    masks, boxes = stripes(4, 4, 4, 4), torch.rand(4, 4)
    boxes[1], boxes[2] = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.4, 0.4]])
    head = fusion(max_per_img=2)

    (result,) = head.predict(
        [logits], [masks], [sample((4, 16), (8, 48))], True, [boxes]
    )

    found = result['ins_results']
    assert found.labels.tolist() == [CAT, DOG]
    assert found.scores[0] > 0.9 > found.scores[1]
    assert found.bboxes.tolist() == [
        pytest.approx([12, 2, 36, 6]),
        pytest.approx([33.6, 5.6, 48, 8]),
    ]
    assert found.masks.shape == (2, 8, 48)
    assert found.masks[0, :, 12:24].all()
    assert found.masks[0].sum() == 8 * 12


@pytest.mark.parametrize(
    'settings', [{}, dict(instance_on=False), dict(panoptic_on=False, max_per_img=2)]
)
def test_the_selected_queries_are_enough(settings):
    torch.manual_seed(1)
    logits, masks, boxes = 3 * torch.randn(9, 5), torch.randn(9, 6, 8), torch.rand(9, 4)
    head, meta = fusion(object_mask_thr=0.5, **settings), [sample((24, 32))]
    rows = head.select(logits)
    assert 0 < rows.sum() < 9

    (every,) = head.predict([logits], [masks], meta, True, [boxes])
    (selected,) = head.predict([logits[rows]], [masks[rows]], meta, True, [boxes[rows]])

    assert every.keys() == selected.keys()
    for name in every:
        other = dict(selected[name].items())
        for key, value in every[name].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(iou_thr=0.8), r"settings out of \['panoptic_on'.*got \['iou_thr'\]"),
        (dict(merge_stuff='add'), "merge_stuff must be one of .*; got 'add'"),
        (dict(object_mask_thr=85), 'object_mask_thr must be a probability.*got 85'),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fusion(**settings)
