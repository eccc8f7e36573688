"""Cases of Focus-DETR, as it was released in detrex: its parts, and what runs them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmsparse.conversion.focus_detr import rename
from mmsparse.models.detectors import (
    FocusEncoder,
    FocusEncoderLayer,
    ForegroundLoss,
)
from mmsparse.ops.pyramid import level_centers
from mmsparse.ops.tokens import gather_tokens, logit_product, select_tokens
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.focus_detr_build import level_sizes, load
from parity.focus_detr_models import (
    Outputs,
    run_criterion,
    run_detector,
    run_selector,
)
from parity.models import recorded_outputs

ENCODER, LAYER = 'encoder.', 'encoder.layers.0.'
SETS = ('inds',)  # kept tokens, whose neighbors may swap
COUNTED = (torch.int32, torch.int64, torch.bool)


def compare(case: Case) -> list[Comparison]:
    """Run our counterpart of a case and pair every tensor with the official one.

    Args:
        case: The case; the start of its name tells what it is of.

    Returns:
        One comparison for each stored output and gradient.

    Raises:
        UnsupportedCaseError: We have no counterpart for the case.
    """
    run = next(
        (run for kind, run in RUNNERS.items() if case.name.startswith(kind)), None
    )
    if run is None:
        raise UnsupportedCaseError(f'no counterpart; there are those of {[*RUNNERS]}')
    ours = run(case)
    stored = [x for x in case.tensors if x.startswith(('out.', 'grad.'))]
    return [_comparison(case, name, ours[name]) for name in stored]


def _comparison(case: Case, name: str, actual: Tensor) -> Comparison:
    expected = case.tensors[name]
    if expected.dtype in COUNTED or name == 'out.targets':
        as_sets = name.removeprefix('out.').rstrip('0123456789') in SETS
        return Comparison(name, actual, expected, as_sets=as_sets)
    if name == 'out.det_boxes':  # mmdet clips boxes to the picture
        ends = torch.tensor(case.info['args']['image_sizes']).flip(-1).repeat(1, 2)
        expected = expected.clamp(min=0).minimum(ends[:, None])
    tolerance = case.info['tolerance']
    kind = 'grad_fp32' if name.startswith('grad.') else 'fp32'
    atol = tolerance.get(f'{kind}_atol', tolerance['fp32_atol'])
    rtol = tolerance.get(f'{kind}_rtol', tolerance['fp32_rtol'])
    if actual.shape == expected.shape:
        # Where there is no proposal both are infinite; that has no difference.
        same = actual.isinf() & (actual == expected)
        actual, expected = (x.masked_fill(same, 0) for x in (actual, expected))
    return Comparison(name, actual, expected, atol, rtol)


def _run_loss(case: Case) -> Outputs:
    arguments = case.info['args']
    weight = arguments['loss_weight']
    loss = ForegroundLoss(
        arguments['strides'],
        arguments['limit_range'],
        alpha=arguments['alpha'],
        gamma=arguments['gamma'],
        loss_weight=weight,
    )
    logits = case.tensors['in.pred_logit'].clone().requires_grad_()
    boxes = list(case.tensors['in.padded_boxes'])
    sizes = level_sizes(case)
    targets = loss.targets(boxes, sizes)
    of_images = [
        loss(logits[i : i + 1, :, 0], boxes[i : i + 1], sizes)
        for i in range(len(boxes))
    ]
    weighted = loss(logits[..., 0], boxes, sizes)
    (weighted / weight).backward()
    of_levels = targets.split([height * width for height, width in sizes], dim=1)
    return {
        'out.targets': targets[..., None],
        'out.num_pos': targets.sum(1),
        'out.num_pos_per_level': torch.stack([x.sum(1) for x in of_levels], dim=1),
        'out.loss_per_image': torch.stack(of_images) / weight,
        'out.loss': weighted / weight,
        'out.weighted_loss': weighted,
        'grad.pred_logit': logits.grad,
    }


def _run_layer(case: Case) -> Outputs:
    arguments, given = case.info['args'], case.with_prefix('in.')
    layer = FocusEncoderLayer(arguments['topk_sa'], **_layer_cfg(arguments)).eval()
    load(layer, case.state, LAYER)
    inputs = {
        name: given[name].clone().requires_grad_()
        for name in ('query', 'query_pos', 'value')
    }
    scores = logit_product(given['class_logit'], given['foreground_logit'])
    before: list[Tensor] = []
    layer.self_attn.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    with recorded_outputs(layer) as seen:
        output = layer(
            **inputs,
            object_scores=scores,
            key_padding_mask=given['padding_mask'],
            reference_points=given['reference_points'],
            spatial_shapes=given['spatial_shapes'],
            level_sizes=level_sizes(case),
        )
    (output * given['cotangent']).sum().backward()
    return {
        'out.object_score': scores,
        'out.object_inds': layer.choose_objects(scores),
        'out.oesm_attn': seen['token_attn'],
        'out.oesm_norm': seen['token_norm'],
        'out.after_oesm': before[0],
        'out.after_deform_attn': seen['self_attn'],
        'out.after_norm0': seen['norms.0'],
        'out.after_ffn': seen['ffn'],
        'out.output': output,
        **{f'grad.{name}': x.grad for name, x in inputs.items()},
        **_gradients(case, layer),
    }


def _gradients(case: Case, layer: nn.Module) -> Outputs:
    """Gradients of a layer's weights that are stored, by their official names."""
    place = 'transformer.encoder.layers.0.'
    weights = dict(layer.named_parameters())
    names = rename({key: torch.tensor(0) for key in case.state})
    ours = dict(zip(case.state, names, strict=True))
    return {
        f'grad.param.{name}': weights[ours[place + name].removeprefix(LAYER)].grad
        for name in case.with_prefix('grad.param.')
    }


def _run_encoder(case: Case) -> Outputs:
    arguments, given = case.info['args'], case.with_prefix('in.')
    encoder = FocusEncoder(
        num_layers=arguments['num_layers'],
        layer_cfg=_layer_cfg(arguments),
        num_object_tokens=arguments['topk_sa'],
    ).eval()
    head = nn.Linear(arguments['embed_dim'], arguments['num_classes'])
    aliases = 'transformer.encoder.enhance_MCSP.'
    heads = {k: x for k, x in case.state.items() if k.startswith(aliases)}
    load(encoder, {k: x for k, x in case.state.items() if k not in heads}, ENCODER)
    head.load_state_dict({k.rpartition('.')[2]: x for k, x in heads.items()})
    selection = select_tokens(
        given['masked_logit'],
        given['padding_mask'],
        (~given['padding_mask']).sum(1),
        arguments['focus_rho'],
        arguments['cascade_set'][: arguments['num_layers']],
    )
    inputs = {name: given[name].clone().requires_grad_() for name in ('feat', 'pos')}
    scores: dict[str, Tensor] = {}
    for i, layer in enumerate(encoder.layers):
        layer.register_forward_pre_hook(_note_scores(scores, str(i)))
    sizes = level_sizes(case)
    with recorded_outputs(encoder) as seen:
        memory = encoder(
            query=inputs['feat'],
            query_pos=inputs['pos'],
            key_padding_mask=given['padding_mask'],
            centers=level_centers(sizes, given['valid_ratios']),
            valid_ratios=given['valid_ratios'],
            selection=selection,
            class_head=head,
            spatial_shapes=given['spatial_shapes'],
            level_sizes=sizes,
        )
    (memory * given['cotangent']).sum().backward()
    ours = {'out.memory': memory}
    for i, layer in enumerate(encoder.layers):
        # Neighbors may swap: line our rows up with the official ones.
        rows = selection.rows[:, : selection.kept[i]]
        order = _places(rows, given[f'inds{i}'])
        ours[f'out.layer{i}'] = gather_tokens(seen[f'layers.{i}'], order)
        objects = layer.choose_objects(scores[str(i)], selection.eligible[i])
        ours[f'out.object_inds{i}'] = order.argsort(-1).gather(1, objects)
    return {**ours, **{f'grad.{name}': x.grad for name, x in inputs.items()}}


def _note_scores(scores: dict[str, Tensor], name: str) -> Callable[..., None]:
    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        scores[name] = inputs[2]

    return note


def _places(rows: Tensor, wanted: Tensor) -> Tensor:
    """Where each of the wanted tokens is among the rows, (B, K)."""
    if not torch.equal(rows.sort(-1).values, wanted.sort(-1).values):
        raise ValueError('The kept tokens are others than the official ones.')
    return rows.argsort(-1).gather(1, wanted.argsort(-1).argsort(-1))


def _layer_cfg(arguments: Mapping[str, Any]) -> dict[str, Any]:
    width = arguments['embed_dim']
    levels = arguments.get('num_levels', arguments.get('num_feature_levels'))
    return dict(
        self_attn_cfg=dict(
            embed_dims=width,
            num_heads=arguments['num_heads'],
            num_levels=levels,
            num_points=arguments['num_points'],
            dropout=0.0,
        ),
        ffn_cfg=dict(
            embed_dims=width,
            feedforward_channels=arguments['feedforward_dim'],
            ffn_drop=0.0,
        ),
    )


RUNNERS: dict[str, Callable[[Case], Outputs]] = {
    'score_path_': run_selector,
    'encoder_layer_': _run_layer,
    'encoder_': _run_encoder,
    'foreground_loss_': _run_loss,
    'criterion_no_dn_': run_criterion,
    'model_micro_': run_detector,
}
