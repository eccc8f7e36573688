"""Golden cases of Focus-DETR: the detector, up to its encoder or whole; the head."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from mmsparse.conversion.focus_detr import FOCUS_DETR
from mmsparse.models.detectors import FocusDETR, FocusDETRHead
from mmsparse.ops.pyramid import level_centers
from mmsparse.ops.tokens import foreground_counts, gather_tokens
from parity.cases import Case, UnsupportedCaseError
from parity.models import Arguments, recorded

Outputs = dict[str, Tensor]  # of mmsparse, by the names of the case

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
        detector, [case.tensors[f'in.feat{i}'] for i in levels], _samples(arguments)
    )
    lengths = [height * width for height, width in seen['level_sizes']]
    logits = seen['foreground_logits'][..., None].split(lengths, dim=1)
    centers = level_centers(seen['level_sizes'], seen['valid_ratios'])
    return {
        **_selection(seen, detector.keep_ratio),
        'out.enc_memory': seen['scored'],
        'out.proposals': seen['proposals'],
        'out.valid_token_nums': seen['num_valid'],
        'out.k_per_layer': torch.tensor(seen['selection'].kept),
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
    samples = _samples(arguments)
    with torch.no_grad():
        feats = detector.neck([features[name] for name in sorted(features)])
        seen = _encode(detector, feats, samples)
        detector.level_embed.zero_()  # leaves the position embedding
        plain, _ = detector.pre_transformer(feats, samples)
        seen.update(_decode(detector, seen, samples))
    sizes = seen['level_sizes']
    return {
        **_selection(seen, detector.keep_ratio),
        **_per_level('out.neck', seen['feat'], sizes),
        **_per_level('out.pos', plain['feat_pos'], sizes),
        **_per_level('out.mask', _padding(seen), sizes),
        **{f'out.{name}': seen[name] for name in seen if f'out.{name}' in case.tensors},
    }


def run_criterion(case: Case) -> Outputs:
    """Compute matching and losses of given outputs and boxes."""
    arguments, given = case.info['args'], case.with_prefix('in.')
    head = _build_head(arguments)
    samples = _samples_with_boxes(given)
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
            outputs[f'out.match{i}.{j}'] = _match(head, logits[j], boxes[j], sample)
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
        'selection': calls['encoder'].kwargs['selection'],
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
        foreground_logit=seen['foreground_logits'][..., None],
        det_scores=torch.stack([x.scores for x in found]),
        det_labels=torch.stack([x.labels for x in found]),
        det_boxes=torch.stack([x.bboxes for x in found]),
    )


def _selection(seen: Mapping[str, Any], keep_ratio: float) -> Outputs:
    logits, selection = seen['foreground_logits'], seen['selection']
    return {
        'out.foreground_logit': logits[..., None],
        # The official code ranks padding last by the least logit, mmsparse by -inf.
        'out.masked_logit': torch.where(_padding(seen), logits.min(), logits),
        'out.focus_token_nums': foreground_counts(seen['num_valid'], keep_ratio),
        **{
            f'out.inds{i}': selection.rows[:, :count]
            for i, count in enumerate(selection.kept)
        },
    }


def _padding(seen: Mapping[str, Any]) -> Tensor:
    if seen['feat_mask'] is None:
        return torch.zeros_like(seen['foreground_logits'], dtype=torch.bool)
    return seen['feat_mask']


def _per_level(name: str, tokens: Tensor, sizes: Sequence[tuple[int, int]]) -> Outputs:
    """Feature maps of all levels from (B, N, C), or masks from (B, N)."""
    lengths = [height * width for height, width in sizes]
    levels = zip(tokens.split(lengths, dim=1), sizes, strict=True)
    return {
        f'{name}{i}': x.unflatten(1, size).movedim(3, 1)
        if x.ndim == 3
        else x.unflatten(1, size)
        for i, (x, size) in enumerate(levels)
    }


def _samples(arguments: Arguments) -> list[BaseDataElement]:
    """The samples of a batch of images, without boxes."""
    return [
        BaseDataElement(
            metainfo=dict(
                img_shape=tuple(size),
                ori_shape=tuple(size),
                batch_input_shape=tuple(arguments['padded_image']),
                scale_factor=(1.0, 1.0),
            )
        )
        for size in arguments['image_sizes']
    ]


def _samples_with_boxes(given: Mapping[str, Tensor]) -> list[BaseDataElement]:
    sizes = given['image_sizes'].tolist()
    samples = _samples(dict(image_sizes=sizes, padded_image=(0, 0)))
    for i, (sample, (height, width)) in enumerate(zip(samples, sizes, strict=True)):
        factors = torch.tensor([width, height, width, height])
        sample.gt_instances = InstanceData(
            bboxes=_corners(given[f'boxes{i}'] * factors),
            labels=given[f'labels{i}'],
        )
    return samples


def _match(
    head: FocusDETRHead, logits: Tensor, boxes: Tensor, sample: BaseDataElement
) -> Tensor:
    """Matched queries and their targets, (2, n), by queries."""
    height, width = sample.img_shape
    factors = boxes.new_tensor([width, height, width, height])
    predicted = InstanceData(scores=logits, bboxes=_corners(boxes) * factors)
    assigned = head.assigner.assign(predicted, sample.gt_instances, sample.metainfo)
    queries = assigned.gt_inds.nonzero()[:, 0]
    return torch.stack([queries, assigned.gt_inds[queries] - 1])


def _corners(boxes: Tensor) -> Tensor:
    centers, sides = boxes.chunk(2, dim=-1)
    return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides], dim=-1)


def level_sizes(case: Case) -> tuple[tuple[int, int], ...]:
    """Return height and width of every level of a case."""
    given = case.with_prefix('in.')
    sizes = given.get('level_shapes', given.get('spatial_shapes'))
    return tuple((int(height), int(width)) for height, width in sizes)


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


def layer_cfg(arguments: Arguments) -> dict[str, Any]:
    """Return the config of an encoder layer."""
    levels = arguments.get('num_levels', arguments.get('num_feature_levels'))
    return dict(
        self_attn_cfg=dict(
            embed_dims=arguments['embed_dim'],
            num_heads=arguments['num_heads'],
            num_levels=levels,
            num_points=arguments['num_points'],
            dropout=0.0,
        ),
        ffn_cfg=dict(
            embed_dims=arguments['embed_dim'],
            feedforward_channels=arguments['feedforward_dim'],
            ffn_drop=0.0,
        ),
    )


def build_detector(arguments: Arguments) -> FocusDETR:
    """Build the detector without a backbone, in evaluation mode."""
    width, levels = arguments['embed_dim'], arguments['num_feature_levels']
    positions = arguments['position_embedding']
    encoder_layer = layer_cfg(arguments)
    decoder_layer = dict(
        self_attn_cfg=dict(
            embed_dims=width, num_heads=arguments['num_heads'], dropout=0.0
        ),
        cross_attn_cfg=encoder_layer['self_attn_cfg'],
        ffn_cfg=encoder_layer['ffn_cfg'],
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = FocusDETR(
            keep_ratio=arguments['focus_rho'],
            cascade=arguments['cascade_set'][: arguments['enc_layers']],
            num_object_tokens=arguments['topk_sa'],
            num_queries=arguments['num_queries'],
            num_feature_levels=levels,
            with_box_refine=True,
            as_two_stage=True,
            backbone=dict(type=nn.Identity),
            neck=_neck(arguments),
            encoder=dict(num_layers=arguments['enc_layers'], layer_cfg=encoder_layer),
            decoder=dict(
                num_layers=arguments['dec_layers'],
                layer_cfg=decoder_layer,
                post_norm_cfg=None,
            ),
            positional_encoding=dict(
                num_feats=positions['num_pos_feats'],
                temperature=positions['temperature'],
                normalize=positions['normalize'],
                offset=positions['offset'],
            ),
            bbox_head=dict(
                type='mmsparse.FocusDETRHead',
                num_classes=arguments['num_classes'],
                embed_dims=width,
                loss_cls=dict(type='FocalLoss', use_sigmoid=True),
                loss_foreground=dict(strides=[8 * 2**i for i in range(levels)]),
            ),
            dn_cfg=dict(group_cfg=dict(num_dn_queries=1)),
            test_cfg=dict(max_per_img=arguments['select']),
        )
    return detector.eval()


def _neck(arguments: Arguments) -> dict[str, Any] | None:
    if 'neck' not in arguments:
        return None
    neck = arguments['neck']
    return dict(
        type='ChannelMapper',
        in_channels=list(neck['in_channels']),
        out_channels=arguments['embed_dim'],
        kernel_size=neck['kernel_size'],
        bias=neck['conv_bias'],
        norm_cfg=dict(type='GN', num_groups=neck['groups']),
        act_cfg=None,
        num_outs=arguments['num_feature_levels'],
    )


def _build_head(arguments: Arguments) -> FocusDETRHead:
    weights, costs = arguments['weights'], arguments['matcher']
    focal = {name: arguments['focal'][name] for name in ('alpha', 'gamma')}
    class_cost = dict(
        type='FocalLossCost',
        weight=costs['cost_class'],
        alpha=costs['alpha'],
        gamma=costs['gamma'],
    )
    assigner = dict(
        type='HungarianAssigner',
        match_costs=[
            class_cost,
            dict(type='BBoxL1Cost', weight=costs['cost_bbox'], box_format='xywh'),
            dict(type='IoUCost', iou_mode='giou', weight=costs['cost_giou']),
        ],
    )
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
            train_cfg=dict(assigner=assigner),
        )
