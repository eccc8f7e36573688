"""Cases of Focus-DETR that need the detector or its head."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from mmsparse.conversion.focus_detr import FOCUS_DETR
from mmsparse.models.detectors import FocusDETR, FocusDETRHead
from mmsparse.ops.pyramid import level_centers
from mmsparse.ops.tokens import foreground_counts, gather_tokens
from parity.cases import Case, UnsupportedCaseError
from parity.focus_detr_build import (
    Arguments,
    build_detector,
    build_head,
    level_sizes,
    load,
    samples,
)
from parity.models import recorded_outputs

Outputs = dict[str, Tensor]  # ours, by the names of the case

# What a case of the selector alone does not tell, and what does not matter there.
ANY_SIZE = dict(
    num_heads=1,
    feedforward_dim=8,
    dec_layers=1,
    num_points=1,
    num_queries=1,
    num_classes=1,
    topk_sa=1,
    select=1,
)
LOSSES = ('loss_class', 'loss_bbox', 'loss_giou')


def run_selector(case: Case) -> Outputs:
    """Run all that comes before the encoder.

    Args:
        case: Maps of the neck to the tokens that each layer keeps.

    Returns:
        Our outputs.
    """
    arguments = dict(ANY_SIZE, **case.info['args'])
    arguments['enc_layers'] = len(arguments['cascade_set'])
    detector = build_detector(arguments)
    load(detector, case.state, partial=True)
    maps = [case.tensors[f'in.feat{i}'] for i in range(arguments['num_feature_levels'])]
    seen = _encode(detector, maps, samples(arguments))
    lengths = [height * width for height, width in seen['level_sizes']]
    logits = seen['foreground_logits'][..., None]
    centers = level_centers(seen['level_sizes'], seen['valid_ratios'])
    levels = enumerate(logits.split(lengths, dim=1))
    return {
        **_selection(seen, detector.keep_ratio),
        'out.enc_memory': seen['scored'],
        'out.proposals': seen['proposals'],
        'out.valid_token_nums': seen['num_valid'],
        'out.k_per_layer': torch.tensor(seen['selection'].kept),
        **{f'out.level_logit{i}': x for i, x in levels},
        'out.spatial_shapes': seen['spatial_shapes'],
        'out.level_start_index': seen['level_start_index'],
        'out.valid_ratios': seen['valid_ratios'],
        'out.reference_points': centers[:, :, None] * seen['valid_ratios'][:, None],
    }


def run_detector(case: Case) -> Outputs:
    """Run all that comes after the backbone.

    Args:
        case: Maps of the backbone to detections.

    Returns:
        Our outputs.

    Raises:
        UnsupportedCaseError: Encoder and decoder are not of one depth.
    """
    arguments = case.info['args']
    if arguments['enc_layers'] != arguments['dec_layers']:
        raise UnsupportedCaseError(
            'enc_layers other than dec_layers: a head of another'
        )
    detector = build_detector(arguments)
    _, converted = FOCUS_DETR.convert(case.state, backbone_only=False)
    detector.load_state_dict(converted)
    maps = case.with_prefix('in.backbone.')
    pictures = samples(arguments)
    with torch.no_grad():
        necks = detector.neck([maps[name] for name in sorted(maps)])
        seen = _encode(detector, necks, pictures)
        detector.level_embed.zero_()  # leaves the position embedding
        plain, _ = detector.pre_transformer(necks, pictures)
        seen.update(_decode(detector, seen, pictures))
    return {
        **_selection(seen, detector.keep_ratio),
        **_per_level('out.neck', seen['feat'], seen['level_sizes']),
        **_per_level('out.pos', plain['feat_pos'], seen['level_sizes']),
        **_per_level('out.mask', _padding(seen), seen['level_sizes']),
        **{f'out.{name}': seen[name] for name in seen if f'out.{name}' in case.tensors},
    }


def run_criterion(case: Case) -> Outputs:
    """Compute matching and losses of given outputs.

    Args:
        case: Outputs and boxes to matches and losses.

    Returns:
        Our outputs.
    """
    arguments, given = case.info['args'], case.with_prefix('in.')
    head = build_head(arguments)
    pictures = _with_boxes(given, arguments)
    metas = [picture.metainfo for picture in pictures]
    truths = [picture.gt_instances for picture in pictures]
    layers = zip(given['all_logits'], given['all_boxes'], strict=True)
    *earlier, last = layers
    calls = {'': last, **{f'_{i}': x for i, x in enumerate(earlier)}}
    calls['_enc'] = given['enc_logits'], given['enc_boxes']
    ours: Outputs = {}
    for i, (call, (logits, boxes)) in enumerate(calls.items()):
        losses = head.loss_by_feat_single(logits, boxes, truths, metas)
        names = (f'out.weighted.{kind}{call}' for kind in LOSSES)
        ours.update(zip(names, losses, strict=True))
        for j, picture in enumerate(pictures):
            ours[f'out.match{i}.{j}'] = _match(head, logits[j], boxes[j], picture)
    ours['out.weighted.select_loss'] = head.loss_foreground(
        given['foreground_logit'][..., 0], [x.bboxes for x in truths], level_sizes(case)
    )
    for name, weight in arguments['weights'].items():
        ours[f'out.loss.{name}'] = ours[f'out.weighted.{name}'] / weight
    return ours


def _encode(
    detector: FocusDETR, maps: Sequence[Tensor], pictures: list[BaseDataElement]
) -> dict[str, Any]:
    """Run a detector up to the end of its encoder; all that goes in and out there."""
    inputs, of_decoder = detector.pre_transformer(tuple(maps), pictures)
    seen: dict[str, Any] = dict(inputs, of_decoder=of_decoder)

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen['selection'] = kwargs['selection']

    handle = detector.encoder.register_forward_pre_hook(note, with_kwargs=True)
    with recorded_outputs(detector) as outputs:
        seen['encoded'] = detector.forward_encoder(**inputs)
    handle.remove()
    return {**seen, **seen['encoded'], 'scored': outputs['memory_trans_norm']}


def _decode(
    detector: FocusDETR, seen: Mapping[str, Any], pictures: list[BaseDataElement]
) -> dict[str, Tensor]:
    """Run a detector from the end of its encoder to the detections."""
    with recorded_outputs(detector) as outputs:
        inputs, _ = detector.pre_decoder(**seen['encoded'], batch_data_samples=pictures)
    last = len(detector.bbox_head.cls_branches) - 1
    class_logits = outputs[f'bbox_head.cls_branches.{last}']
    rows = class_logits.amax(-1).topk(detector.num_queries).indices
    decoded = detector.forward_decoder(**seen['of_decoder'], **inputs)
    logits, boxes = detector.bbox_head(**decoded)
    found = detector.bbox_head.predict(**decoded, batch_data_samples=pictures)
    return dict(
        twostage_inds=rows,
        twostage_class=gather_tokens(class_logits, rows),
        twostage_boxes=inputs['reference_points'],
        init_reference=decoded['references'][0],
        inter_references=torch.stack(decoded['references'][1:]),
        hidden_states=decoded['hidden_states'],
        all_logits=logits,
        all_boxes=boxes,
        pred_logits=logits[-1],
        pred_boxes=boxes[-1],
        foreground_logit=seen['foreground_logits'][..., None],
        det_scores=torch.stack([x.scores for x in found]),
        det_labels=torch.stack([x.labels for x in found]),
        det_boxes=torch.stack([x.bboxes for x in found]),
    )


def _selection(seen: Mapping[str, Any], keep_ratio: float) -> Outputs:
    logits, padding = seen['foreground_logits'], _padding(seen)
    selection = seen['selection']
    kept = enumerate(selection.kept)
    return {
        'out.foreground_logit': logits[..., None],
        # Ours have no number there at all, and are ranked last just so.
        'out.masked_logit': torch.where(padding, logits.min(), logits),
        'out.focus_token_nums': foreground_counts(seen['num_valid'], keep_ratio),
        **{f'out.inds{i}': selection.rows[:, :count] for i, count in kept},
    }


def _padding(seen: Mapping[str, Any]) -> Tensor:
    if seen['feat_mask'] is None:
        return torch.zeros_like(seen['foreground_logits'], dtype=torch.bool)
    return seen['feat_mask']


def _per_level(name: str, tokens: Tensor, sizes: Sequence[tuple[int, int]]) -> Outputs:
    """Maps of all levels from (B, N, C); of (B, N) without channels."""
    lengths = [height * width for height, width in sizes]
    levels = zip(tokens.split(lengths, dim=1), sizes, strict=True)
    maps = (level.unflatten(1, size) for level, size in levels)
    return {
        f'{name}{i}': x.permute(0, 3, 1, 2) if x.ndim == 4 else x
        for i, x in enumerate(maps)
    }


def _with_boxes(
    given: Mapping[str, Tensor], arguments: Arguments
) -> list[BaseDataElement]:
    sizes = [tuple(size) for size in given['image_sizes'].tolist()]
    pictures = samples(dict(image_sizes=sizes, padded_image=(0, 0)))
    for i, (picture, (height, width)) in enumerate(zip(pictures, sizes, strict=True)):
        factors = torch.tensor([width, height, width, height])
        picture.gt_instances = InstanceData(
            bboxes=_corners(given[f'boxes{i}'] * factors),
            labels=given[f'labels{i}'],
        )
    return pictures


def _match(
    head: FocusDETRHead, logits: Tensor, boxes: Tensor, picture: BaseDataElement
) -> Tensor:
    """Matched queries and their targets, (2, n), by queries."""
    height, width = picture.img_shape
    factors = boxes.new_tensor([width, height, width, height])
    predicted = InstanceData(scores=logits, bboxes=_corners(boxes) * factors)
    assigned = head.assigner.assign(predicted, picture.gt_instances, picture.metainfo)
    queries = assigned.gt_inds.nonzero()[:, 0]
    return torch.stack([queries, assigned.gt_inds[queries] - 1])


def _corners(boxes: Tensor) -> Tensor:
    centers, sides = boxes.chunk(2, dim=-1)
    return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides], dim=-1)
