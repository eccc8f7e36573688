"""Golden cases of Focus-DETR: the detector, up to its encoder or whole; the head."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmsparse.conversion.focus_detr import FOCUS_DETR
from mmsparse.models.detectors import FocusDETR, FocusDETRHead
from mmsparse.ops.pyramid import level_centers
from mmsparse.ops.tokens import gather_tokens, selected_counts
from parity.cases import Case, UnsupportedCaseError
from parity.detectors import (
    Outputs,
    add_boxes,
    assigner_cfg,
    level_sizes,
    make_samples,
    match,
    neck_cfg,
    per_level,
    transformer_cfg,
)
from parity.models import Arguments, recorded

# What a case of the token selector leaves out, and what does not matter there.
ANY_SIZE = dict.fromkeys(
    (
        *('num_heads', 'dec_layers', 'num_points', 'num_queries', 'num_classes'),
        *('topk_sa', 'select'),
    ),
    1,
)
LOSSES = ('loss_class', 'loss_bbox', 'loss_giou')


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename some of the official weights of all but the backbone."""
    layout = FOCUS_DETR.layout(weights, FOCUS_DETR.widths(weights))
    names = {entry.official: entry.key for entry in layout}
    return {names[official]: tensor for official, tensor in weights.items()}


def run_selector(case: Case) -> Outputs:
    """Run everything from the neck's feature maps to the tokens of each layer."""
    arguments = dict(ANY_SIZE, feedforward_dim=8, **case.info['args'])
    arguments['enc_layers'] = len(arguments['cascade_set'])
    detector = build_detector(arguments)
    load(detector, case.state, partial=True)
    levels = range(arguments['num_feature_levels'])
    seen = _encode(
        detector, [case.tensors[f'in.feat{i}'] for i in levels], make_samples(arguments)
    )
    lengths = [height * width for height, width in seen['level_sizes']]
    logits = seen['tokens'].logits[..., None].split(lengths, dim=1)
    centers = level_centers(seen['level_sizes'], seen['valid_ratios'])
    return {
        **_selection(seen, detector.keep_ratio),
        'out.enc_memory': seen['scored'],
        'out.proposals': seen['tokens'].proposals,
        'out.valid_token_nums': seen['num_valid'],
        'out.k_per_layer': torch.tensor(seen['tokens'].selection.kept),
        **{f'out.level_logit{i}': x for i, x in enumerate(logits)},
        'out.spatial_shapes': seen['spatial_shapes'],
        'out.level_start_index': seen['level_start_index'],
        'out.valid_ratios': seen['valid_ratios'],
        'out.reference_points': centers[:, :, None] * seen['valid_ratios'][:, None],
    }


def run_detector(case: Case) -> Outputs:
    """Run everything from the backbone's feature maps to detections."""
    arguments = case.info['args']
    if arguments['enc_layers'] != arguments['dec_layers']:
        raise UnsupportedCaseError('enc_layers other than dec_layers: another head')
    detector = build_detector(arguments)
    _, converted = FOCUS_DETR.convert(case.state, backbone_only=False)
    detector.load_state_dict(converted)
    features = case.with_prefix('in.backbone.')
    samples = make_samples(arguments)
    with torch.no_grad():
        feats = detector.neck([features[name] for name in sorted(features)])
        seen = _encode(detector, feats, samples)
        detector.level_embed.zero_()  # leaves the position embedding
        plain, _ = detector.pre_transformer(feats, samples)
        seen.update(_decode(detector, seen, samples))
    sizes = seen['level_sizes']
    return {
        **_selection(seen, detector.keep_ratio),
        **per_level('out.neck', seen['feat'], sizes),
        **per_level('out.pos', plain['feat_pos'], sizes),
        **per_level('out.mask', _padding(seen), sizes),
        **{f'out.{name}': seen[name] for name in seen if f'out.{name}' in case.tensors},
    }


def run_criterion(case: Case) -> Outputs:
    """Compute matching and losses of given outputs and boxes."""
    arguments, given = case.info['args'], case.with_prefix('in.')
    head = _build_head(arguments)
    sizes = given['image_sizes'].tolist()
    samples = make_samples(dict(image_sizes=sizes, padded_image=(0, 0)))
    add_boxes(samples, given)
    metas = [sample.metainfo for sample in samples]
    truths = [sample.gt_instances for sample in samples]
    *earlier, last = zip(given['all_logits'], given['all_boxes'], strict=True)
    calls = {'': last, **{f'_{i}': x for i, x in enumerate(earlier)}}
    calls['_enc'] = given['enc_logits'], given['enc_boxes']
    outputs: Outputs = {}
    for i, (call, (logits, boxes)) in enumerate(calls.items()):
        losses = head.loss_by_feat_single(logits, boxes, truths, metas)
        names = (f'out.weighted.{loss}{call}' for loss in LOSSES)
        outputs.update(zip(names, losses, strict=True))
        for j, sample in enumerate(samples):
            outputs[f'out.match{i}.{j}'] = match(head, logits[j], boxes[j], sample)
    outputs['out.weighted.select_loss'] = head.loss_foreground(
        given['foreground_logit'][..., 0], [x.bboxes for x in truths], level_sizes(case)
    )
    for name, weight in arguments['weights'].items():
        outputs[f'out.loss.{name}'] = outputs[f'out.weighted.{name}'] / weight
    return outputs


def _encode(
    detector: FocusDETR, feats: Sequence[Tensor], samples: list[BaseDataElement]
) -> dict[str, Any]:
    """Run a detector to the end of its encoder; return all inputs and outputs."""
    inputs, decoder_inputs = detector.pre_transformer(tuple(feats), samples)
    with recorded(detector) as calls:
        encoded = detector.forward_encoder(**inputs)
    return {
        **inputs,
        **encoded,
        'encoded': encoded,
        'decoder_inputs': decoder_inputs,
        'scored': calls['memory_trans_norm'].output,
    }


def _decode(
    detector: FocusDETR, seen: Mapping[str, Any], samples: list[BaseDataElement]
) -> dict[str, Tensor]:
    """Run a detector from the end of its encoder to the detections."""
    with recorded(detector) as calls:
        inputs, _ = detector.pre_decoder(**seen['encoded'], batch_data_samples=samples)
    last = len(detector.bbox_head.cls_branches) - 1
    class_logits = calls[f'bbox_head.cls_branches.{last}'].output
    rows = class_logits.amax(-1).topk(detector.num_queries).indices
    decoded = detector.forward_decoder(**seen['decoder_inputs'], **inputs)
    logits, boxes = detector.bbox_head(**decoded)
    found = detector.bbox_head.predict(**decoded, batch_data_samples=samples)
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
        foreground_logit=seen['tokens'].logits[..., None],
        det_scores=torch.stack([x.scores for x in found]),
        det_labels=torch.stack([x.labels for x in found]),
        det_boxes=torch.stack([x.bboxes for x in found]),
    )


def _selection(seen: Mapping[str, Any], keep_ratio: float) -> Outputs:
    logits, selection = seen['tokens'].logits, seen['tokens'].selection
    return {
        'out.foreground_logit': logits[..., None],
        # The official code ranks padding last by the least logit, mmsparse by -inf.
        'out.masked_logit': torch.where(_padding(seen), logits.min(), logits),
        'out.focus_token_nums': selected_counts(seen['num_valid'], keep_ratio),
        **{
            f'out.inds{i}': selection.rows[:, :count]
            for i, count in enumerate(selection.kept)
        },
    }


def _padding(seen: Mapping[str, Any]) -> Tensor:
    if seen['feat_mask'] is None:
        return torch.zeros_like(seen['tokens'].logits, dtype=torch.bool)
    return seen['feat_mask']


def load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    prefix: str = '',
    partial: bool = False,
) -> None:
    """Load official weights into the module that the detector has at a prefix."""
    renamed = {key.removeprefix(prefix): x for key, x in rename(state).items()}
    missing, unexpected = module.load_state_dict(renamed, strict=False)
    if unexpected or (missing and not partial):
        raise ValueError(f'unexpected: {unexpected}; missing: {missing}')


def build_detector(arguments: Arguments) -> FocusDETR:
    """Build the detector without a backbone, in evaluation mode."""
    levels, neck = arguments['num_feature_levels'], arguments.get('neck')
    if neck is not None:
        neck = neck_cfg(
            arguments, neck['in_channels'], neck['groups'], neck['conv_bias']
        )
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = FocusDETR(
            keep_ratio=arguments['focus_rho'],
            cascade=arguments['cascade_set'][: arguments['enc_layers']],
            num_object_tokens=arguments['topk_sa'],
            with_box_refine=True,
            as_two_stage=True,
            backbone=dict(type=nn.Identity),
            neck=neck,
            **transformer_cfg(arguments),
            bbox_head=dict(
                type='mmsparse.FocusDETRHead',
                num_classes=arguments['num_classes'],
                embed_dims=arguments['embed_dim'],
                loss_cls=dict(type='FocalLoss', use_sigmoid=True),
                loss_foreground=dict(strides=[8 * 2**i for i in range(levels)]),
            ),
            dn_cfg=dict(group_cfg=dict(num_dn_queries=1)),
            test_cfg=dict(max_per_img=arguments['select']),
        )
    return detector.eval()


def _build_head(arguments: Arguments) -> FocusDETRHead:
    weights = arguments['weights']
    focal = {name: arguments['focal'][name] for name in ('alpha', 'gamma')}
    losses = {name: dict(loss_weight=weights[name]) for name in LOSSES}
    with DefaultScope.overwrite_default_scope('mmdet'):
        return FocusDETRHead(
            num_classes=arguments['num_classes'],
            embed_dims=8,  # its weights are not used
            loss_cls=dict(
                losses['loss_class'], type='FocalLoss', use_sigmoid=True, **focal
            ),
            loss_bbox=dict(losses['loss_bbox'], type='L1Loss'),
            loss_iou=dict(losses['loss_giou'], type='GIoULoss'),
            loss_foreground=dict(
                strides=arguments['strides'],
                size_ranges=arguments['limit_range'],
                loss_weight=weights['select_loss'],
                **focal,
            ),
            train_cfg=dict(assigner=assigner_cfg(**arguments['matcher'])),
        )
