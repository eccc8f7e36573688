"""How many objects a token selector keeps."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmsparse.registry import METRICS


@METRICS.register_module()
class KeptTokenRecall(BaseMetric):
    """Part of the boxes that keep at least one token, at each layer of the encoder.

    A token is of a box if its center lies strictly within, on whatever level. Small
    boxes may lie between the centers: ``all_tokens`` is what keeping everything gives.
    Boxes to be ignored, crowds for example, do not count.

    Needs the ground truth in the samples, in the frame of the original picture, as
    mmdet's pipelines for tests load it, and ``custom_hooks=[dict(type=
    'mmsparse.KeptTokensHook')]``.

    Args:
        **arguments: Those of mmengine's metrics.
    """

    default_prefix = 'kept_token_recall'

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Look at the pictures of a batch.

        Args:
            data_batch: Not used.
            data_samples: Samples with boxes and kept tokens.

        Raises:
            ValueError: A sample has no boxes, not even none, or no kept tokens.
        """
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
        """Take the mean over the boxes of all pictures.

        Args:
            results: For each picture its boxes with tokens, (1 + layers, boxes).

        Returns:
            From 0 to 1, for all tokens and for those of each layer; not a number if
            there is no box.
        """
        recalls = torch.cat(results, dim=1).double().mean(1).tolist()
        names = ['all_tokens', *(f'layer_{i}' for i in range(1, len(recalls)))]
        return dict(zip(names, recalls, strict=True))


def boxes_with_tokens(boxes: Tensor, centers: Tensor, kept: Tensor) -> Tensor:
    """Find the boxes with at least one token.

    Args:
        boxes: (x1, y1, x2, y2), (M, 4).
        centers: Center (x, y) of every token, in the same frame, (N, 2).
        kept: True for the tokens that count, (layers, N).

    Returns:
        True for boxes that such a token lies strictly within, (layers, M).
    """
    after = (centers > boxes[:, None, :2]).all(-1)
    before = (centers < boxes[:, None, 2:]).all(-1)
    inside = after & before  # (M, N)
    return torch.stack([(inside & tokens).any(1) for tokens in kept])


def _check(sample: dict[str, Any]) -> None:
    needed = {
        'gt_instances': "dict(type='LoadAnnotations', with_bbox=True) in the pipeline",
        'kept_tokens': "custom_hooks=[dict(type='mmsparse.KeptTokensHook')]",
    }
    for name, source in needed.items():
        if name not in sample:
            raise ValueError(
                f'Samples must have {name}; got {sorted(sample)}. It comes from '
                f'{source}.'
            )
