"""Golden cases of Sparse DETR, as released: parts of the model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmsparse.models.detectors import (
    AttentionMapLoss,
    DecoderAttentionMap,
    SelectiveEncoder,
    TokenSelector,
)
from mmsparse.models.detectors.attention_map_loss import fill_padding, kept_attention
from mmsparse.ops.pyramid import level_centers, level_layout
from mmsparse.ops.sampling import attention_on_cells
from mmsparse.ops.tokens import (
    TokenSelection,
    gather_tokens,
    mark_tokens,
    selected_counts,
)
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.detectors import (
    LOGGED_ONLY,
    Outputs,
    encoder_layer_cfg,
    leaves,
    level_sizes,
)
from parity.sparse_detr_models import (
    build_detector,
    build_head,
    gradients,
    load,
    run_detector,
    run_losses,
    run_training,
)


def compare(case: Case) -> list[Comparison]:
    """Compare the outputs and gradients of a case."""
    run = CASE_TYPES.get(case.info['kind'])
    if run is None:
        raise UnsupportedCaseError(
            f'no counterpart; the case types are {[*CASE_TYPES]}'
        )
    actual = run(case)
    return [
        _compare(case, name, actual[name])
        for name in case.tensors
        if name.startswith(('out.', 'grad.'))
        and not any(x in name for x in LOGGED_ONLY)
    ]


def _compare(case: Case, name: str, actual: Tensor) -> Comparison:
    expected = case.tensors[name]
    if name == 'out.det_boxes':  # mmdet clips boxes to the image
        ends = case.tensors['in.target_sizes'].flip(-1).repeat(1, 2)
        expected = expected.clamp(min=0).minimum(ends[:, None])
    # Neighbors among the kept tokens may be swapped.
    return case.compare(name, actual, expected, as_sets=name == 'out.topk_inds')


def _run_selector(case: Case) -> Outputs:
    arguments = case.info['args']
    if arguments['in_dim'] != arguments['h_dim']:
        raise UnsupportedCaseError('h_dim other than in_dim')
    parts = nn.ModuleDict(dict(token_selector=TokenSelector(arguments['in_dim'])))
    load(parts, case.state)
    inputs = leaves(case, 'x')
    logits = parts['token_selector'](inputs['x'], ())[..., None]
    (logits * case.tensors['in.cotangent']).sum().backward()
    return {'out.logit': logits, **gradients(case, inputs, parts)}


def _run_score_path(case: Case) -> Outputs:
    """Run everything from the neck's feature maps to the kept tokens."""
    arguments, given = case.info['args'], case.with_prefix('in.')
    detector = build_detector(arguments)
    load(detector, case.state, missing=('',))  # the rest of the detector
    levels = range(arguments['num_feature_levels'])
    inputs = leaves(case, *(f'feat{i}' for i in levels))
    sizes = tuple(tuple(x.shape[-2:]) for x in inputs.values())
    masks = [given[f'mask{i}'] for i in levels]
    positions = [
        given[f'pos{i}'] + detector.level_embed[i, :, None, None] for i in levels
    ]
    tokens = _flatten([*inputs.values()]) + _flatten(positions)
    padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    ratios = torch.stack([detector.get_valid_ratio(mask) for mask in masks], dim=1)
    num_valid = (~padding).sum(1)
    found = detector.score_and_select(tokens, padding, ratios, sizes, num_valid)
    filled = fill_padding(found.logits, padding)
    (filled * given['cotangent']).sum().backward()
    shapes, starts = level_layout(sizes, tokens.device)
    ignored = found.proposals[..., 0].isinf()
    return {
        'out.enc_memory': detector.project_tokens(tokens, ignored),
        'out.proposals': found.proposals,
        'out.logit': found.logits[..., None],
        'out.masked_logit': filled,
        'out.valid_token_nums': num_valid,
        'out.sparse_token_nums': selected_counts(num_valid, detector.keep_ratio),
        'out.topk_inds': found.selection.rows,
        'out.spatial_shapes': shapes,
        'out.level_start_index': starts,
        'out.valid_ratios': ratios,
        'out.reference_points': found.centers[:, :, None] * ratios[:, None],
        **gradients(case, inputs, detector),
    }


def _flatten(maps: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def _given_selection(case: Case) -> TokenSelection:
    """The selection of a case; without kept tokens, their numbers alone."""
    given = case.with_prefix('in.')
    counts = given['sparse_token_nums']
    rows = given.get('topk_inds')
    if rows is None:
        rows = torch.arange(int(counts.max())).expand(len(counts), -1)
    written = torch.arange(rows.shape[1]) < counts[:, None]
    return TokenSelection(rows, rows, (rows.shape[1],), (None,), (written,))


def _run_encoder(case: Case) -> Outputs:
    arguments, given = case.info['args'], case.with_prefix('in.')
    encoder = SelectiveEncoder(
        num_layers=arguments['num_layers'], layer_cfg=encoder_layer_cfg(arguments)
    )
    parts = nn.ModuleDict(dict(encoder=encoder, bbox_head=build_head(arguments)))
    load(parts, case.state, missing=('bbox_head.',))
    inputs, sizes = leaves(case, 'feat', 'pos'), level_sizes(case)
    observed: list[tuple[Tensor, Tensor]] = []
    memory, states = encoder(
        query=inputs['feat'],
        query_pos=inputs['pos'],
        key_padding_mask=given['padding_mask'],
        centers=level_centers(sizes, given['valid_ratios']),
        valid_ratios=given['valid_ratios'],
        selection=_given_selection(case),
        spatial_shapes=given['spatial_shapes'],
        level_sizes=sizes,
        observe=lambda *sampled: observed.append(sampled),
    )
    outputs = {'out.memory': memory}
    outputs['out.sampling_locations0'], outputs['out.attn_weights0'] = observed[0]
    total = (memory * given['cotangent']).sum()
    proposals = gather_tokens(given['output_proposals'], given['topk_inds'])
    for i, state in enumerate(states):
        outputs[f'out.layer{i}'] = state
        if f'cotangent_logits{i}' in given:
            logits, boxes = parts['bbox_head'].predict_tokens(i, state, proposals)
            outputs |= {f'out.aux_logits{i}': logits, f'out.aux_boxes{i}': boxes}
            total = total + (logits * given[f'cotangent_logits{i}']).sum()
            total = total + (boxes * given[f'cotangent_boxes{i}']).sum()
    total.backward()
    return {**outputs, **gradients(case, inputs, parts)}


def _attention_map(case: Case) -> Tensor:
    total = DecoderAttentionMap(level_sizes(case))
    points = case.tensors['in.sampling_locations'].unbind(1)  # by decoder layer
    for sampled in zip(points, case.tensors['in.attn_weights'].unbind(1), strict=True):
        total.add(*sampled)
    return total.total


def _run_map(case: Case) -> Outputs:
    given, sizes = case.with_prefix('in.'), level_sizes(case)
    selection, padding = _given_selection(case), given['mask_flatten']
    dam = _attention_map(case)
    # Heads of one layer, one after the other: (B, layers, heads, N).
    points, weights = given['sampling_locations'], given['attn_weights']
    by_layer = [
        torch.stack(
            [
                attention_on_cells(x[:, :, [i]], y[:, :, [i]], sizes, displaced=True)
                for i in range(x.shape[2])
            ],
            dim=1,
        )
        for x, y in zip(points.unbind(1), weights.unbind(1), strict=True)
    ]
    return {
        'out.flat_grid': torch.stack(by_layer, dim=1),
        'out.dam': dam,
        'out.masked_dam': torch.where(padding, dam.min() - 1, dam),
        'out.target': AttentionMapLoss.targets(dam, padding, selection).float(),
        'out.kept_grid': mark_tokens(selection.rows, dam.shape[1]).float(),
        'out.corr': kept_attention(dam, selection.rows, sizes),
    }


def _run_selector_loss(case: Case) -> Outputs:
    inputs, padding = leaves(case, 'mask_prediction'), case.tensors['in.mask_flatten']
    loss, selection = AttentionMapLoss(), _given_selection(case)
    dam = _attention_map(case)
    # The padding of these logits is filled.
    masked = dam.masked_fill(padding, float('-inf'))
    value = loss(inputs['mask_prediction'], masked, None, selection)
    value.backward()
    return {
        'out.dam': dam,
        'out.target': loss.targets(dam, padding, selection).float(),
        'out.loss': value,
        'out.weighted_loss': value,
        'grad.mask_prediction': inputs['mask_prediction'].grad,
    }


CASE_TYPES: dict[str, Callable[[Case], Outputs]] = {
    'mask_predictor': _run_selector,
    'score_path': _run_score_path,
    'encoder': _run_encoder,
    'dam': _run_map,
    'selector_loss': _run_selector_loss,
    'enc_aux_loss': run_losses,
    'model_micro': run_detector,
    'train_losses': run_training,
}
