"""Golden cases of Sparse DETR: the detector in evaluation and training, its losses."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmsparse.conversion.layout import Weights
from mmsparse.conversion.sparse_detr import SPARSE_DETR
from mmsparse.models.detectors import SparseDETR, SparseDETRHead
from mmsparse.models.detectors.attention_map_loss import fill_padding
from mmsparse.ops.tokens import gather_tokens, selected_counts
from parity.cases import Case, UnsupportedCaseError
from parity.detectors import (
    Outputs,
    add_boxes,
    assigner_cfg,
    leaves,
    make_samples,
    match,
    neck_cfg,
    order_rows,
    transformer_cfg,
)
from parity.models import Arguments

# Official name of a loss: its name here, and its weight.
LOSSES = {
    'loss_ce': ('loss_cls', 2.0),
    'loss_bbox': ('loss_bbox', 5.0),
    'loss_giou': ('loss_iou', 2.0),
}
# What a case of the token selector leaves out, and what does not matter there.
ANY_SIZE = dict(
    dict.fromkeys(
        (
            *('enc_layers', 'dec_layers', 'num_points', 'num_queries', 'num_classes'),
            'feedforward_dim',
        ),
        1,
    ),
    position_embedding=dict(temperature=10000, normalize=True, offset=-0.5),
)
# Names of losses here, of all sets of predictions, as patterns, and the official ones.
SETS = (
    (r'd(\d+)\.(.*)', r'\2_\1'),
    (r'enc_(.*)', r'\1_enc'),
    (r'e(\d+)\.(.*)', r'\2_enc_\1'),
    (r'corr', 'corr_mask_attn_map_dec_all'),
    (r'corr_level(\d+)', r'corr_mask_attn_map_dec_\1'),
    (r'loss_dam', 'loss_mask_prediction'),
)
NORMALIZED = (512, 512)  # size of images whose boxes are given from 0 to 1


def build_detector(arguments: Arguments) -> SparseDETR:
    """Build the detector without a backbone, in evaluation mode."""
    for name in ('with_box_refine', 'two_stage'):
        if not arguments.get(name, True):
            raise UnsupportedCaseError(f'{name}=False: not Sparse DETR')
    if not arguments['rho']:
        raise UnsupportedCaseError('rho=0: no tokens are selected')
    arguments = {**ANY_SIZE, **arguments}
    width, neck = arguments['embed_dim'], None
    arguments['position_embedding'] = dict(
        arguments['position_embedding'], num_pos_feats=width // 2
    )
    if 'in_channels' in arguments:
        groups = arguments['group_norm_groups']
        neck = neck_cfg(arguments, arguments['in_channels'], groups)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = SparseDETR(
            keep_ratio=arguments['rho'],
            query_content='token' if arguments.get('eff_query_init', True) else 'box',
            class_agnostic=not arguments.get('eff_specific_head', True),
            encoder_losses=arguments.get('use_enc_aux_loss', True),
            backbone=dict(type=nn.Identity),
            neck=neck,
            **transformer_cfg(arguments),
            bbox_head=dict(_head_cfg(arguments), type='mmsparse.SparseDETRHead'),
            train_cfg=dict(assigner=assigner_cfg()),
            test_cfg=dict(max_per_img=100),
        )
    return detector.eval()


def build_head(arguments: Arguments) -> SparseDETRHead:
    """Build the head with branches for query selection and encoder layers only."""
    layers = arguments.get('enc_layers', arguments.get('num_layers'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = SparseDETRHead(
            **_head_cfg(arguments),
            num_pred_layer=1,
            train_cfg=dict(assigner=assigner_cfg()),
        )
    head.add_branches(layers - 1)
    head.class_agnostic = not arguments.get('eff_specific_head', True)
    return head


def _head_cfg(arguments: Arguments) -> dict[str, Any]:
    focal = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25)
    weights = {name: dict(loss_weight=weight) for name, weight in LOSSES.values()}
    return dict(
        num_classes=arguments['num_classes'],
        embed_dims=arguments.get('embed_dim', 8),
        sync_cls_avg_factor=True,
        loss_cls=focal | weights['loss_cls'],
        loss_bbox=dict(weights['loss_bbox'], type='L1Loss'),
        loss_iou=dict(weights['loss_iou'], type='GIoULoss'),
    )


def official_names(keys: Iterable[str], weights: Weights) -> dict[str, str]:
    """Map official keys, also repeated ones, to those of the detector.

    ``weights`` are those of the case, which show the sizes of the model.
    """
    known = {SPARSE_DETR.alias_of(key, weights): x for key, x in weights.items()}
    layout = SPARSE_DETR.layout(known, SPARSE_DETR.widths(known))
    names = {entry.official: entry.key for entry in layout}
    return {key: names[SPARSE_DETR.alias_of(key, weights)] for key in keys}


def load(module: nn.Module, weights: Weights, missing: tuple[str, ...] = ()) -> None:
    """Load official weights; keys of the module with some prefixes may be missing."""
    names = official_names(weights, weights)
    renamed = {names[key]: x for key, x in weights.items()}
    absent, unexpected = module.load_state_dict(renamed, strict=False)
    absent = [key for key in absent if not key.startswith(missing)]
    if absent or unexpected:
        raise ValueError(f'unexpected: {unexpected}; missing: {absent}')


def gradients(
    case: Case, inputs: Mapping[str, Tensor], module: nn.Module | None = None
) -> Outputs:
    """Return the gradients of inputs, and of parameters by their official names."""
    found = {f'grad.{name}': x.grad for name, x in inputs.items()}
    stored = list(case.with_prefix('grad.state.'))
    if module is not None:
        parameters = dict(module.named_parameters())
        names = official_names(stored, case.state)
        found |= {f'grad.state.{k}': parameters[names[k]].grad for k in stored}
    return found


def run_detector(case: Case) -> Outputs:
    """Run everything from the backbone's feature maps to detections."""
    detector, samples = _load_detector(case), make_samples(case.info['args'])
    for sample, size in zip(samples, case.tensors['in.target_sizes'], strict=True):
        (height, width), (rows, columns) = sample.img_shape, size.tolist()
        sample.set_metainfo(dict(scale_factor=(width / columns, height / rows)))
    maps = _maps(case)
    with torch.no_grad():
        # Training also gives what only losses need; there is no dropout.
        seen = _run(detector.train(), maps, samples)
        outputs = _name_outputs(case, seen, _predictions(case, detector, seen))
        decoded = _run(detector.eval(), maps, samples)['decoded']
        found = detector.bbox_head.predict(**decoded, batch_data_samples=samples)
    return {
        **outputs,
        'out.det_scores': torch.stack([x.scores for x in found]),
        'out.det_labels': torch.stack([x.labels for x in found]),
        'out.det_boxes': torch.stack([x.bboxes for x in found]),
    }


def run_training(case: Case) -> Outputs:
    """Compute losses and gradients from the backbone's feature maps and boxes."""
    detector, samples = _load_detector(case).train(), make_samples(case.info['args'])
    add_boxes(samples, case.with_prefix('in.'))
    inputs = leaves(case, *(f'feat{i}' for i in range(len(_maps(case)))))
    seen = _run(detector, [*inputs.values()], samples)
    predictions = _predictions(case, detector, seen)
    losses = detector.bbox_head.loss(**seen['decoded'], batch_data_samples=samples)
    outputs = {
        **_name_outputs(case, seen, predictions),
        **_name_losses({_official_loss(key): x for key, x in losses.items()}),
        **_matches(detector.bbox_head, predictions, samples),
    }
    outputs['out.total'].backward()
    parameters = dict(detector.named_parameters())
    keys = case.info['grad_norm_names']
    names = official_names(keys, case.state)
    norms = [parameters[names[key]].grad.norm() for key in keys]
    outputs['out.grad_norms'] = torch.stack(norms)
    return {**outputs, **gradients(case, inputs, detector)}


def run_losses(case: Case) -> Outputs:
    """Compute matching, losses and gradients of given predictions and boxes."""
    arguments, given = case.info['args'], case.with_prefix('in.')
    head, count = build_head(arguments), arguments['batch']
    samples = make_samples(
        dict(image_sizes=[NORMALIZED] * count, padded_image=NORMALIZED)
    )
    add_boxes(samples, given)
    names = {
        suffix: [_tensor_name(suffix, part, 'aux_dec_') for part in ('logits', 'boxes')]
        for suffix in _suffixes(arguments)
    }
    inputs = leaves(case, *(name for pair in names.values() for name in pair))
    predictions = {
        suffix: (inputs[logits], inputs[boxes])
        for suffix, (logits, boxes) in names.items()
    }
    metas = [sample.metainfo for sample in samples]
    losses = {}
    for suffix, predicted in predictions.items():
        truths = [x.gt_instances for x in _targets(head, suffix, samples)]
        values = head.loss_by_feat_single(*predicted, truths, metas)
        losses |= dict(zip((f'{x}{suffix}' for x in LOSSES), values, strict=True))
    outputs = {**_name_losses(losses), **_matches(head, predictions, samples)}
    outputs['out.total'].backward()
    return {**outputs, **gradients(case, inputs)}


def _load_detector(case: Case) -> SparseDETR:
    detector = build_detector(case.info['args'])
    _, converted = SPARSE_DETR.convert(case.state, backbone_only=False)
    detector.load_state_dict(converted)
    return detector


def _maps(case: Case) -> list[Tensor]:
    levels = range(len(case.info['args']['in_channels']))
    return [case.tensors[f'in.feat{i}'] for i in levels]


def _run(
    detector: SparseDETR, maps: Sequence[Tensor], samples: list[BaseDataElement]
) -> dict[str, Any]:
    """Run neck, encoder and decoder; return the inputs of all, and of the head."""
    inputs, shared = detector.pre_transformer(detector.neck(maps), samples)
    encoded = detector.forward_encoder(**inputs)
    queries, head_inputs = detector.pre_decoder(**encoded)
    decoded = detector.forward_decoder(**shared, **queries)
    return {
        **inputs,
        **encoded,
        **queries,
        'decoded': {**head_inputs, **decoded},
    }


def _predictions(
    case: Case, detector: SparseDETR, seen: Mapping[str, Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return logits and boxes of all sets, in the order of the official losses."""
    head, decoded = detector.bbox_head, seen['decoded']
    outputs = head(decoded['hidden_states'], decoded['references'])
    layers = list(zip(*outputs, strict=True))
    tokens = seen['tokens']
    # Bring the rows, whose neighbors may be swapped, into the official order.
    wanted = case.tensors['out.topk_inds']
    order = order_rows(tokens.selection.rows, wanted)
    proposals = gather_tokens(tokens.proposals, wanted)
    by_encoder = [
        head.predict_tokens(i, gather_tokens(state, order), proposals)
        for i, state in enumerate(decoded['states'])
    ]
    of_queries = decoded['enc_outputs_class'], decoded['enc_outputs_coord']
    sets = [layers[-1], *layers[:-1], of_queries, *by_encoder]
    return dict(zip(_suffixes(case.info['args']), sets, strict=True))


def _suffixes(arguments: Arguments) -> list[str]:
    """List what the official names of losses end with, in their order."""
    return [
        '',
        *(f'_{i}' for i in range(arguments['dec_layers'] - 1)),
        '_enc',
        *(
            f'_enc_{i}'
            for i in range(arguments['enc_layers'] - 1)
            if arguments.get('use_enc_aux_loss', True)
        ),
    ]


def _tensor_name(suffix: str, part: str, decoder: str = 'dec_') -> str:
    """Name logits or boxes of a set of predictions as cases do."""
    number = suffix.rpartition('_')[2]
    if suffix in ('', '_enc'):
        return f'{number or "pred"}_{part}'
    return f'{"aux_enc_" if "enc" in suffix else decoder}{part}{number}'


def _name_outputs(
    case: Case,
    seen: Mapping[str, Any],
    predictions: Mapping[str, tuple[Tensor, Tensor]],
) -> Outputs:
    """Name what a detector in training has computed as cases do."""
    tokens, decoded, padding = seen['tokens'], seen['decoded'], seen['feat_mask']
    class_logits = decoded['enc_outputs_class']
    all_classes = case.info['args'].get('eff_specific_head', True)
    scores = class_logits.amax(-1) if all_classes else class_logits[..., 0]
    outputs = {
        'logit': tokens.logits[..., None],
        'masked_logit': fill_padding(tokens.logits, padding),
        'sparse_token_nums': selected_counts(
            seen['num_valid'], case.info['args']['rho']
        ),
        'topk_inds': tokens.selection.rows,
        'mask_flatten': torch.zeros_like(tokens.logits, dtype=torch.bool)
        if padding is None
        else padding,
        'spatial_shapes': seen['spatial_shapes'],
        'memory': seen['memory'],
        'twostage_inds': scores.topk(seen['query'].shape[1]).indices,
        'query': seen['query'],
        'query_pos': seen['query_pos'],
        'init_reference': seen['reference_points'],
        'hidden_states': decoded['hidden_states'],
        'inter_references': torch.stack(decoded['references'][1:]),
        'dam': decoded['attention_map'],
    }
    for suffix, pair in predictions.items():
        for part, x in zip(('logits', 'boxes'), pair, strict=True):
            outputs[_tensor_name(suffix, part)] = x
    return {f'out.{name}': x for name, x in outputs.items()}


def _official_loss(key: str) -> str:
    """Translate the name of a loss."""
    for pattern, replacement in SETS:
        if found := re.fullmatch(pattern, key):
            key = found.expand(replacement)
            break
    for official, (name, _) in LOSSES.items():
        key = re.sub(rf'{name}(?=_|$)', official, key)
    return key


def _name_losses(losses: Mapping[str, Tensor]) -> Outputs:
    """Name weighted losses, by their official names, with and without weight."""
    weights = {official: weight for official, (_, weight) in LOSSES.items()}
    outputs, total = {}, 0.0
    for name, value in losses.items():
        value = value.squeeze()  # mmdet: (1,) where the number of boxes is a tensor
        kind = '_'.join(name.split('_')[:2])
        outputs[f'out.weighted.{name}'] = value
        outputs[f'out.loss.{name}'] = value / weights.get(kind, 1.0)
        total = total + value * name.startswith('loss_')
    return {**outputs, 'out.total': total}


def _matches(
    head: SparseDETRHead,
    predictions: Mapping[str, tuple[Tensor, Tensor]],
    samples: Sequence[BaseDataElement],
) -> Outputs:
    return {
        f'out.match{i}.{j}': match(head, logits[j].detach(), boxes[j].detach(), sample)
        for i, (suffix, (logits, boxes)) in enumerate(predictions.items())
        for j, sample in enumerate(_targets(head, suffix, samples))
    }


def _targets(
    head: SparseDETRHead, suffix: str, samples: Sequence[BaseDataElement]
) -> list[BaseDataElement]:
    """Return the samples; class 0 for all objects where only these are selected."""
    if suffix != '_enc' or not head.class_agnostic:
        return list(samples)
    copies = copy.deepcopy(list(samples))
    for sample in copies:
        sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    return copies
