"""Golden cases of DETR: attention maps, masks, losses and post-processing."""

from collections.abc import Callable, Sequence

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsparse.conversion.detr import mask_network
from mmsparse.conversion.layout import Entry
from mmsparse.models.detectors import (
    DETRPanopticFusionHead,
    DETRPanopticHead,
    MaskNetwork,
    QueryAttentionMap,
)
from mmsparse.models.detectors.detr_panoptic_head import LOSS_DICE, LOSS_MASK
from mmsparse.models.detectors.panoptic_detr import match_queries, padded_masks
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.detectors import LOGGED_ONLY, Outputs
from parity.detectors import leaves as named_leaves
from parity.detr_models import (
    build_bbox_head,
    detections,
    make_sample,
    run_detector,
)

LOSSES = {'loss_ce': 'loss_cls', 'loss_bbox': 'loss_bbox', 'loss_giou': 'loss_iou'}
MASK_LOSSES = ('loss_mask', 'loss_dice')


def compare(case: Case) -> list[Comparison]:
    """Compare the outputs and gradients of a case."""
    kind = case.info['kind']
    if kind not in CASE_TYPES:
        raise UnsupportedCaseError(
            f'no counterpart; the case types are {[*CASE_TYPES]}'
        )
    actual = CASE_TYPES[kind](case)
    comparisons = []
    for name, expected in case.tensors.items():
        if name.startswith(('in.', 'state.')) or name.endswith(LOGGED_ONLY):
            continue
        if name.startswith('loss.') and name.rpartition('_')[0].endswith(LOGGED_ONLY):
            continue
        computed, wanted = actual[name], expected
        if isinstance(computed, tuple):  # with what has to be expected instead
            computed, wanted = computed
        comparisons.append(_compare(case, name, computed, wanted))
    return comparisons


def _compare(case: Case, name: str, actual: Tensor, expected: Tensor) -> Comparison:
    comparison = case.compare(name, actual, expected)
    if not name.startswith('grad.'):
        return comparison
    rtol = case.info['tolerance']['grad_rtol']
    return Comparison(name, actual, expected, comparison.atol, rtol)


def _run_attention_map(case: Case) -> Outputs:
    arguments = case.info['constructor']
    attention = QueryAttentionMap(
        arguments['query_dim'], arguments['hidden_dim'], arguments['num_heads']
    )
    queries, memory = leaves = [*named_leaves(case, *case.info['inputs']).values()]
    masks = case.tensors.get('in.mask', [None] * len(queries))

    def run() -> Tensor:
        return torch.stack(
            [attention(*x) for x in zip(queries, memory, masks, strict=True)]
        )

    return _run_module(case, attention, leaves, run)


def _run_mask_head(case: Case) -> Outputs:
    arguments = case.info['constructor']
    x, attention, *feats = leaves = [*named_leaves(case, *case.info['inputs']).values()]
    network = MaskNetwork(
        x.shape[1],
        arguments['dim'] - x.shape[1],
        arguments['fpn_dims'][::-1],
        arguments['context_dim'],
    )

    def run() -> Tensor:
        images = zip(attention, x, *feats[::-1], strict=True)
        masks = [network(maps, src, finer) for maps, src, *finer in images]
        return torch.cat(masks)[:, None]

    layout = mask_network(
        arguments['dim'], arguments['context_dim'], arguments['fpn_dims'][::-1]
    )
    return _run_module(case, network, leaves, run, layout)


def _run_module(
    case: Case,
    module: nn.Module,
    leaves: list[Tensor],
    run: Callable[[], Tensor],
    layout: Sequence[Entry] = (),
) -> Outputs:
    """Run a module, whose keys are the official ones but for those of the layout."""
    keys = {entry.official: entry.key for entry in layout}
    state = {keys.get(name, name): x for name, x in case.state.items()}
    module.eval().load_state_dict(state)
    out = run()
    (out * case.tensors['in.cotangent']).sum().backward()
    inputs = zip(case.info['inputs'], leaves, strict=True)
    parameters = dict(module.named_parameters())
    return {
        'out': out,
        **{f'grad.{name}': x.grad for name, x in inputs},
        **{
            f'grad.state.{name}': parameters[keys.get(name, name)].grad
            for name in case.state
        },
    }


def _run_criterion(case: Case) -> Outputs:
    arguments = case.info['args']
    layers = range(arguments['layers'])
    logits, boxes = (
        [case.tensors[f'in.{name}.{i}'].clone().requires_grad_() for i in layers]
        for name in ('pred_logits', 'pred_boxes')
    )
    masks = case.tensors['in.pred_masks'].clone().requires_grad_()
    truths, metas = _truths(case)
    head, mask_head = _build_heads(case)
    losses = head.loss_by_feat(torch.stack(logits), torch.stack(boxes), truths, metas)
    outputs: Outputs = {}
    for i in layers:
        for j, (truth, meta) in enumerate(zip(truths, metas, strict=True)):
            outputs[f'match.{i}.{j}.query'], outputs[f'match.{i}.{j}.target'] = (
                match_queries(head, logits[i][j], boxes[i][j], truth, meta)
            )
    chosen, targets = [], []
    for j, (truth, meta) in enumerate(zip(truths, metas, strict=True)):
        last = f'match.{layers[-1]}.{j}'
        chosen.append(masks[j, outputs[f'{last}.query']])
        targets.append(padded_masks(truth, outputs[f'{last}.target'], meta))
    losses |= mask_head.loss(chosen, targets, max(sum(map(len, truths)), 1))

    total = sum(losses.values())
    total.backward()
    outputs['loss.total'] = total
    outputs |= _official_losses(losses, arguments)
    outputs['grad.pred_masks'] = masks.grad
    for i in layers:
        outputs[f'grad.pred_logits.{i}'] = logits[i].grad
        outputs[f'grad.pred_boxes.{i}'] = boxes[i].grad
    return outputs


def _official_losses(losses: Outputs, arguments: dict) -> Outputs:
    """Return the losses without weights, by their official names."""
    weights = arguments['weights']
    named = {f'loss.{name}': losses[name] / weights[name] for name in MASK_LOSSES}
    for official, name in LOSSES.items():
        named[f'loss.{official}'] = losses[name] / weights[official]
        for i in range(arguments['layers'] - 1):
            value = losses[f'd{i}.{name}'] / weights[official]
            named[f'loss.{official}_{i}'] = value
    return named


def _build_heads(case: Case) -> tuple[DETRHead, DETRPanopticHead]:
    arguments = case.info['args']
    weights, costs = arguments['weights'], arguments['matcher']
    head = build_bbox_head(
        arguments['num_classes'],
        embed_dims=8,  # its layers are not used
        background=arguments['eos_coef'],
        weights=[weights[name] for name in LOSSES],
        costs=[costs[f'cost_{name}'] for name in ('class', 'bbox', 'giou')],
    )
    mask_head = DETRPanopticHead(
        embed_dims=128,
        loss_mask=dict(LOSS_MASK, loss_weight=weights['loss_mask']),
        loss_dice=dict(LOSS_DICE, loss_weight=weights['loss_dice']),
    )
    return head, mask_head


def _truths(case: Case) -> tuple[list[InstanceData], list[dict]]:
    sizes = case.info['args']['image_sizes']
    canvas = tuple(map(max, zip(*sizes, strict=True)))
    metas = [make_sample(size, size, canvas).metainfo for size in sizes]
    truths = []
    for j, (height, width) in enumerate(sizes):
        masks = case.tensors[f'in.masks.{j}'].numpy()
        ends = torch.tensor([width, height, width, height])
        truths.append(
            InstanceData(
                labels=case.tensors[f'in.labels.{j}'],
                bboxes=bbox_cxcywh_to_xyxy(case.tensors[f'in.boxes.{j}']) * ends,
                masks=BitmapMasks(masks, height, width),
            )
        )
    return truths, metas


def _run_postprocess(case: Case) -> Outputs:
    arguments = case.info['args']
    number = arguments['num_classes']
    # Classes of things first, as in mmdet.
    is_thing = {int(k): x for k, x in arguments['is_thing_map'].items()}
    order = sorted(range(number), key=lambda label: not is_thing[label])
    official = torch.tensor(order)
    things = sum(is_thing.values())
    fusion = DETRPanopticFusionHead(
        things, number - things, dict(object_mask_thr=arguments['threshold'])
    )
    head = build_bbox_head(number, embed_dims=8)
    given = case.with_prefix('in.')
    logits = given['pred_logits'][..., [*order, number]]
    samples = _samples(case)
    predicted = (given['pred_logits'], given['pred_boxes'], samples)
    outputs = detections(case, head, *predicted, prefix='instances')
    for i, sample in enumerate(samples):
        meta, masks = sample.metainfo, given['pred_masks'][i]
        segments = fusion.segment(logits[i], masks, meta, rescale=True)
        labels = official[segments.labels]
        areas = torch.bincount(segments.ids.flatten(), minlength=len(labels))
        outputs[f'panoptic.{i}.ids'] = segments.ids
        columns = (torch.arange(len(labels)), labels, segments.labels < things, areas)
        rows = torch.stack([x[: len(labels)] for x in columns], dim=1)
        outputs[f'panoptic.{i}.segments'] = rows
        scores = given['pred_logits'][i].softmax(-1)[:, :-1].amax(-1)
        best = scores > arguments['instance_threshold']
        found = fusion.instance_masks(masks[best], meta, rescale=True)
        outputs[f'instances.{i}.masks_of_best'] = found
    return outputs


def _samples(case: Case) -> list[DetDataSample]:
    sizes = case.info['args']
    processed, targets = sizes['processed_sizes'], sizes['target_sizes']
    canvas = tuple(map(max, zip(*processed, strict=True)))
    return [
        make_sample(size, target, canvas)
        for size, target in zip(processed, targets, strict=True)
    ]


CASE_TYPES: dict[str, Callable[[Case], Outputs]] = {
    'attention_map': _run_attention_map,
    'mask_head': _run_mask_head,
    'detr': run_detector,
    'criterion': _run_criterion,
    'postprocess': _run_postprocess,
}
