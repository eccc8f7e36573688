"""Metric of token selection: the share of boxes that keep a token."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmsparse.registry import METRICS

SOURCES = {  # of the fields that samples must have
    'gt_instances': "dict(type='LoadAnnotations', with_bbox=True) to the pipeline",
    'kept_tokens': "dict(type='mmsparse.KeptTokensHook') to custom_hooks",
}


@METRICS.register_module()
class KeptTokenRecall(BaseMetric):
    """Share of the boxes that keep at least one token, at each encoder layer.

    A box has a token if the center of the token is strictly inside, on any level. A
    small box may have no token at all: ``all_tokens`` is the recall of keeping every
    token. Ignored boxes, such as crowds, do not count.

    Samples must have boxes in the coordinates of the original image, as mmdet's test
    pipelines load them, and the tokens of :class:`KeptTokensHook`.
    Arguments are those of mmengine's ``BaseMetric``.
    """

    default_prefix = 'kept_token_recall'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Find the boxes with kept tokens in a batch."""
        for sample in data_samples:
            _check(sample)
            boxes = sample['gt_instances']['bboxes'].float()
            height, width = sample['ori_shape'][:2]
            kept = sample['kept_tokens']
            hits = boxes_with_tokens(
                boxes / boxes.new_tensor([width, height, width, height]),
                sample['token_centers'].to(boxes.device),
                torch.cat([torch.ones_like(kept[:1]), kept]).to(boxes.device),
            )
            self.results.append(hits.cpu())

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Return the recall, 0 to 1, over all boxes; NaN if there are none."""
        recalls = torch.cat(results, dim=1).double().mean(1).tolist()
        names = ['all_tokens', *(f'layer_{i}' for i in range(1, len(recalls)))]
        return dict(zip(names, recalls, strict=True))


def boxes_with_tokens(boxes: Tensor, centers: Tensor, kept: Tensor) -> Tensor:
    """Find the boxes that have the center of a kept token strictly inside, (layers, M).

    Boxes (x1, y1, x2, y2), (M, 4), and centers (x, y), (N, 2), have the same
    coordinates. ``kept`` is whether each layer keeps a token, (layers, N).
    """
    after, before = centers > boxes[:, None, :2], centers < boxes[:, None, 2:]
    inside = (after & before).all(-1)  # (M, N)
    return torch.stack([(inside & tokens).any(1) for tokens in kept])


def _check(sample: dict[str, Any]) -> None:
    for name, source in SOURCES.items():
        if name not in sample:
            raise ValueError(
                f'Samples must have {name}; got {sorted(sample)}. Add {source}.'
            )
