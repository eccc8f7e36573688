"""Golden cases of Focus-DETR, as released for detrex: parts of the model."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmsparse.models.detectors import (
    FocusEncoder,
    FocusEncoderLayer,
    ForegroundLoss,
)
from mmsparse.ops.pyramid import level_centers
from mmsparse.ops.tokens import gather_tokens, logit_product, select_tokens
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.detectors import (
    Outputs,
    encoder_layer_cfg,
    leaves,
    level_sizes,
    order_rows,
)
from parity.focus_detr_models import (
    load,
    rename,
    run_criterion,
    run_detector,
    run_selector,
)
from parity.models import recorded

ENCODER, LAYER = 'encoder.', 'encoder.layers.0.'
CLASS_HEAD = 'transformer.encoder.enhance_MCSP.'


def compare(case: Case) -> list[Comparison]:
    """Compare the outputs and gradients of a case."""
    run = next(
        (run for prefix, run in CASE_TYPES.items() if case.name.startswith(prefix)),
        None,
    )
    if run is None:
        raise UnsupportedCaseError(
            f'no counterpart; the case types are {[*CASE_TYPES]}'
        )
    actual = run(case)
    return [
        _compare(case, name, actual[name])
        for name in case.tensors
        if name.startswith(('out.', 'grad.'))
    ]


def _compare(case: Case, name: str, actual: Tensor) -> Comparison:
    expected = case.tensors[name]
    if name == 'out.targets':
        return Comparison(name, actual, expected)
    if name == 'out.det_boxes':  # mmdet clips boxes to the image
        ends = torch.tensor(case.info['args']['image_sizes']).flip(-1).repeat(1, 2)
        expected = expected.clamp(min=0).minimum(ends[:, None])
    # Neighbors among the kept tokens may be swapped.
    as_sets = name.rstrip('0123456789') == 'out.inds'
    return case.compare(name, actual, expected, as_sets)


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
    logits = leaves(case, 'pred_logit')['pred_logit']
    boxes = list(case.tensors['in.padded_boxes'])
    sizes = level_sizes(case)
    targets = loss.targets(boxes, sizes)
    per_image = [
        loss(logits[i : i + 1, :, 0], boxes[i : i + 1], sizes)
        for i in range(len(boxes))
    ]
    weighted = loss(logits[..., 0], boxes, sizes)
    (weighted / weight).backward()
    levels = targets.split([height * width for height, width in sizes], dim=1)
    return {
        'out.targets': targets[..., None],
        'out.num_pos': targets.sum(1),
        'out.num_pos_per_level': torch.stack([x.sum(1) for x in levels], dim=1),
        'out.loss_per_image': torch.stack(per_image) / weight,
        'out.loss': weighted / weight,
        'out.weighted_loss': weighted,
        'grad.pred_logit': logits.grad,
    }


def _run_layer(case: Case) -> Outputs:
    arguments, given = case.info['args'], case.with_prefix('in.')
    layer = FocusEncoderLayer(
        arguments['topk_sa'], **encoder_layer_cfg(arguments)
    ).eval()
    load(layer, case.state, LAYER)
    inputs = leaves(case, 'query', 'query_pos', 'value')
    scores = logit_product(given['class_logit'], given['foreground_logit'])
    with recorded(layer) as calls:
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
        'out.oesm_attn': calls['token_attn'].output,
        'out.oesm_norm': calls['token_norm'].output,
        'out.after_oesm': calls['self_attn'].args[0],
        'out.after_deform_attn': calls['self_attn'].output,
        'out.after_norm0': calls['norms.0'].output,
        'out.after_ffn': calls['ffn'].output,
        'out.output': output,
        **{f'grad.{name}': x.grad for name, x in inputs.items()},
        **_parameter_gradients(case, layer),
    }


def _parameter_gradients(case: Case, layer: nn.Module) -> Outputs:
    """The stored gradients of a layer's parameters, by their official names."""
    place = 'transformer.encoder.layers.0.'
    parameters = dict(layer.named_parameters())
    names = rename({key: torch.tensor(0) for key in case.state})
    renamed = dict(zip(case.state, names, strict=True))
    return {
        f'grad.param.{name}': parameters[renamed[place + name].removeprefix(LAYER)].grad
        for name in case.with_prefix('grad.param.')
    }


def _run_encoder(case: Case) -> Outputs:
    arguments, given = case.info['args'], case.with_prefix('in.')
    encoder = FocusEncoder(
        num_layers=arguments['num_layers'],
        layer_cfg=encoder_layer_cfg(arguments),
        num_object_tokens=arguments['topk_sa'],
    ).eval()
    head = nn.Linear(arguments['embed_dim'], arguments['num_classes'])
    heads = {k: x for k, x in case.state.items() if k.startswith(CLASS_HEAD)}
    load(encoder, {k: x for k, x in case.state.items() if k not in heads}, ENCODER)
    head.load_state_dict({k.rpartition('.')[2]: x for k, x in heads.items()})
    selection = select_tokens(
        given['masked_logit'],
        given['padding_mask'],
        (~given['padding_mask']).sum(1),
        arguments['focus_rho'],
        arguments['cascade_set'][: arguments['num_layers']],
    )
    inputs, sizes = leaves(case, 'feat', 'pos'), level_sizes(case)
    with recorded(encoder) as calls:
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
    outputs = {'out.memory': memory}
    for i, layer in enumerate(encoder.layers):
        # Bring the rows, whose neighbors may be swapped, into the official order.
        call = calls[f'layers.{i}']
        rows = selection.rows[:, : selection.kept[i]]
        order = order_rows(rows, given[f'inds{i}'])
        objects = layer.choose_objects(call.args[2], selection.eligible[i])
        outputs[f'out.layer{i}'] = gather_tokens(call.output, order)
        outputs[f'out.object_inds{i}'] = order.argsort(-1).gather(1, objects)
    return {**outputs, **{f'grad.{name}': x.grad for name, x in inputs.items()}}


CASE_TYPES: dict[str, Callable[[Case], dict[str, Any]]] = {
    'score_path_': run_selector,
    'encoder_layer_': _run_layer,
    'encoder_': _run_encoder,
    'foreground_loss_': _run_loss,
    'criterion_no_dn_': run_criterion,
    'model_micro_': run_detector,
}
