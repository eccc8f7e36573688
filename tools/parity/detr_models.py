"""Golden cases of DETR: the detector, with or without its mask head."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import detectors
from mmdet.models.dense_heads import DETRHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from torch import Tensor

from mmsparse.conversion.convert import convert
from mmsparse.conversion.detectors import Detector
from mmsparse.conversion.detr import DETR, DETR_PANOPTIC, PANOPTIC
from mmsparse.conversion.host_backbones import resnet, resnet_widths
from mmsparse.conversion.layout import below
from parity.cases import Case
from parity.generated import generate_state
from parity.models import Arguments, recorded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB from 0 to 1
WEIGHTS, COSTS = (1.0, 5.0, 2.0), (1.0, 5.0, 2.0)  # class, L1 of boxes, GIoU


def run_detector(case: Case) -> dict[str, Any]:
    """Run the model from images to detections and masks.

    A pair has an output and what is expected of it instead of the stored tensor.
    """
    arguments = case.info['constructor']
    official = case.state or _generate(case)
    # All rows of classes: those of COCO's classes alone would change the scores.
    found = convert(official, class_ids='all')
    model = _build_model(arguments)
    model.load_state_dict(found.state_dict)
    inputs, samples = _preprocess(case, model)
    with torch.no_grad(), recorded(model) as calls:
        maps = model.extract_feat(inputs)
        decoded = model.forward_transformer(maps, samples)
        states = decoded['hidden_states']
        logits, boxes = model.bbox_head(states)
    size = maps[-1].shape[-2:]
    mask = calls['encoder'].kwargs['key_padding_mask']
    padding = torch.zeros(len(inputs), *size, dtype=torch.bool)
    if mask is not None:
        padding = mask.unflatten(-1, size)
    memory = calls['encoder'].output.transpose(1, 2).unflatten(-1, size)
    ends = {x: len(getattr(model, x).layers) - 1 for x in ('encoder', 'decoder')}
    attention = 'encoder.layers.{encoder}.self_attn.attn'.format(**ends)
    cross = 'decoder.layers.{decoder}.cross_attn.attn'.format(**ends)
    outputs = {
        'padding': padding,
        'pos': calls['positional_encoding'].output,
        'src_proj': maps[-1],
        'memory': memory,
        'hs': states,
        'pred_boxes': boxes[-1],
        'pred_logits': logits[-1],
        'attention.encoder_last': calls[attention].output[1],
        'attention.decoder_last': calls[cross].output[1],
        **detections(case, model.bbox_head, logits[-1], boxes[-1], samples),
    }
    for i, (layer_logits, layer_boxes) in enumerate(zip(logits, boxes, strict=True)):
        outputs[f'aux.{i}.pred_logits'] = layer_logits
        outputs[f'aux.{i}.pred_boxes'] = layer_boxes
    queries = case.info.get('stored_queries') or list(range(states.shape[2]))
    outputs['attention.decoder_last'] = outputs['attention.decoder_last'][:, queries]
    if not arguments['backbone']['masks']:
        return outputs
    chosen, head = states[-1][:, queries], model.mask_head
    *feats, last = maps
    with torch.no_grad():
        images = zip(chosen, memory, padding, strict=True)
        outputs['bbox_mask'] = torch.stack([head.attention(*x) for x in images])
        masks = head(list(chosen), memory, padding, last, feats)
    outputs['pred_masks'] = torch.stack(masks)
    return outputs


def _generate(case: Case) -> dict[str, Tensor]:
    """Generate the weights of a case that stores their rule."""
    arguments = case.info['constructor']
    family = DETR_PANOPTIC if arguments['backbone']['masks'] else DETR
    layout = family.layout(_shown_sizes(arguments), _stage_widths(arguments, family))
    backbone = arguments['backbone']
    body = resnet(backbone['depth'], backbone['base_channels'])
    layout += below(family.backbone, 'backbone.', body)
    shapes = {
        entry.official: torch.Size(entry.shape)
        for entry in layout
        if not entry.official.endswith('num_batches_tracked')
    }
    return generate_state(shapes, case.info['salt'], case.info['state_gains'])


def _stage_widths(arguments: Arguments, family: Detector) -> list[int]:
    backbone = arguments['backbone']
    widths = [*resnet_widths(backbone['depth'], backbone['base_channels'])]
    return widths if family is DETR_PANOPTIC else widths[-1:]


def _shown_sizes(arguments: Arguments) -> dict[str, Tensor]:
    """Return tensors from whose names and shapes a layout reads all sizes."""
    width, hidden = arguments['hidden_dim'], arguments['dim_feedforward']
    last = {x: arguments[f'{x[:3]}_layers'] - 1 for x in ('encoder', 'decoder')}
    shapes = {
        **{f'transformer.{x}.layers.{i}.linear1.bias': hidden for x, i in last.items()},
        'transformer.decoder.norm.bias': width,
        'class_embed.bias': arguments['num_classes'] + 1,
        'query_embed.weight': arguments['num_queries'],
    }
    if arguments['backbone']['masks']:
        shapes = {PANOPTIC + name: size for name, size in shapes.items()}
        shapes['bbox_attention.q_linear.bias'] = width
        shapes['mask_head.lay1.bias'] = width + arguments['nheads']
    return {name: torch.empty(size, device='meta') for name, size in shapes.items()}


def _build_model(arguments: Arguments) -> detectors.DETR:
    width, heads = arguments['hidden_dim'], arguments['nheads']
    backbone = arguments['backbone']
    attention = dict(embed_dims=width, num_heads=heads, dropout=0.0)
    ffn = dict(
        embed_dims=width,
        feedforward_channels=arguments['dim_feedforward'],
        ffn_drop=0.0,
    )
    layer = dict(self_attn_cfg=attention, ffn_cfg=ffn)
    widths = _stage_widths(arguments, DETR_PANOPTIC)
    number = arguments['num_classes']
    settings = dict(
        type='DETR',
        num_queries=arguments['num_queries'],
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[255 * x for x in MEAN],
            std=[255 * x for x in STD],
        ),
        backbone=dict(
            type='mmsparse.DC5ResNet' if backbone['dilation'] else 'ResNet',
            depth=backbone['depth'],
            base_channels=backbone['base_channels'],
            out_indices=(0, 1, 2, 3) if backbone['masks'] else (3,),
            norm_cfg=dict(type='BN', requires_grad=False),
        ),
        neck=dict(
            type='ChannelMapper',
            in_channels=widths[-1:],
            kernel_size=1,
            out_channels=width,
            act_cfg=None,
            num_outs=1,
        ),
        encoder=dict(num_layers=arguments['enc_layers'], layer_cfg=layer),
        decoder=dict(
            num_layers=arguments['dec_layers'],
            layer_cfg=dict(layer, cross_attn_cfg=attention),
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
        bbox_head=_bbox_head(number, width),
        train_cfg=_train_cfg(COSTS),
        test_cfg={},
    )
    if backbone['masks']:
        settings |= dict(
            type='mmsparse.PanopticDETR',
            mask_head=dict(
                type='mmsparse.DETRPanopticHead',
                embed_dims=width,
                num_heads=heads,
                feat_channels=widths[:-1],
            ),
            panoptic_fusion_head=dict(
                type='mmsparse.DETRPanopticFusionHead',
                num_things_classes=number,
                num_stuff_classes=0,
            ),
        )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(settings).eval()


def build_bbox_head(number: int, embed_dims: int, **arguments: Any) -> DETRHead:
    """Build mmdet's head of classes and boxes.

    Args:
        number: Number of classes.
        embed_dims: Channels of its input.
        **arguments: ``background``, ``weights`` and ``costs``.

    Returns:
        The head.
    """
    costs = arguments.pop('costs', COSTS)
    settings = _bbox_head(number, embed_dims, **arguments)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(dict(settings, train_cfg=_train_cfg(costs), test_cfg={}))


def _bbox_head(
    number: int,
    embed_dims: int,
    background: float = 0.1,
    weights: Sequence[float] = WEIGHTS,
) -> dict[str, Any]:
    classes = dict(type='CrossEntropyLoss', class_weight=1.0, bg_cls_weight=background)
    return dict(
        type='DETRHead',
        num_classes=number,
        embed_dims=embed_dims,
        loss_cls=dict(classes, loss_weight=weights[0]),
        loss_bbox=dict(type='L1Loss', loss_weight=weights[1]),
        loss_iou=dict(type='GIoULoss', loss_weight=weights[2]),
    )


def _train_cfg(costs: Sequence[float]) -> dict[str, Any]:
    matches = [
        dict(type='ClassificationCost', weight=costs[0]),
        dict(type='BBoxL1Cost', weight=costs[1], box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=costs[2]),
    ]
    return dict(assigner=dict(type='HungarianAssigner', match_costs=matches))


def _preprocess(
    case: Case, model: detectors.DETR
) -> tuple[Tensor, list[DetDataSample]]:
    sizes = case.info['image_sizes']
    targets = case.info.get('target_sizes', sizes)
    images = [case.tensors[f'in.image.{i}'] for i in range(len(sizes))]
    samples = [
        make_sample(size, target) for size, target in zip(sizes, targets, strict=True)
    ]
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples))
    return data['inputs'], data['data_samples']


def make_sample(
    size: Sequence[int], original: Sequence[int], canvas: Sequence[int] | None = None
) -> DetDataSample:
    """Make the sample of an image from its sizes (height, width)."""
    factors = tuple(new / old for new, old in zip(size, original, strict=True))
    meta = dict(img_shape=tuple(size), ori_shape=tuple(original))
    meta |= dict(scale_factor=factors[::-1])
    if canvas is not None:
        meta['batch_input_shape'] = tuple(canvas)
    return DetDataSample(metainfo=meta)


def detections(
    case: Case,
    head: DETRHead,
    logits: Tensor,
    boxes: Tensor,
    samples: list[DetDataSample],
    prefix: str = 'detections',
) -> dict[str, Any]:
    """Return the detections of mmdet's head in the order of the queries.

    mmdet clips boxes to the image, so the official ones are clipped as well.
    """
    metas = [sample.metainfo for sample in samples]
    results = head.predict_by_feat(logits[None], boxes[None], metas)
    outputs: dict[str, Any] = {}
    for i, (result, meta) in enumerate(zip(results, metas, strict=True)):
        scores = logits[i].softmax(-1)[:, :-1].amax(-1)
        back = scores.topk(len(scores)).indices.argsort()  # mmdet sorts by score
        for name, field in (('scores', 'scores'), ('labels', 'labels')):
            outputs[f'{prefix}.{i}.{name}'] = result[field][back]
        expected = case.tensors.get(f'{prefix}.{i}.boxes')
        if expected is not None:
            height, width = meta['ori_shape']
            ends = expected.new_tensor([width, height, width, height])
            clipped = expected.clamp(min=0).minimum(ends)
            outputs[f'{prefix}.{i}.boxes'] = result.bboxes[back], clipped
    return outputs
