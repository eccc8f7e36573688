"""What detection transformers share whose encoder updates selected tokens only.

:class:`SelectiveTransformer` scores all tokens and selects the best; Sparse DETR and
Focus-DETR differ in the network that scores, in what supervises it, and in the encoder.
"""

import copy
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from mmdet.structures import OptSampleList
from mmengine.structures import InstanceData
from torch import Tensor

from mmsparse.models.detectors.mmcv_operators import replace_operators
from mmsparse.ops.pyramid import level_centers, level_proposals, valid_sizes
from mmsparse.ops.tokens import TokenSelection, select_tokens

LevelSizes = tuple[tuple[int, int], ...]  # height and width of every level


class ScoredTokens(NamedTuple):
    """The tokens of a batch: where they are, their scores, and the selected ones."""

    centers: Tensor  # (x, y) from 0 to 1 over the image, (B, N, 2)
    proposals: Tensor  # box logits, infinite where there is no proposal, (B, N, 4)
    logits: Tensor  # of the token selector, padding included, (B, N)
    selection: TokenSelection


class SelectiveTransformer:
    """Mixin that adds token selection to a DETR of mmdet.

    The DETR must have ``memory_trans_fc`` and ``memory_trans_norm``, as two-stage
    detectors do. ``_init_layers`` must add a ``token_selector``, and call
    ``_finish_layers`` at the end.

    Args:
        keep_ratio: Fraction of an image's tokens that is selected, in (0, 1].
        per_image: Keep a fraction of the tokens of each image. Otherwise the image with
            the most tokens decides for the batch, as released.
        global_pool: Cells that the token selector averages over: ``all``, as released,
            or only the ``valid`` ones, without padding.
        score_border: Score tokens at the image border by their features. As released,
            they all have the same score.
        **arguments: Those of the DETR; they are not modified.

    Raises:
        ValueError: ``keep_ratio`` or ``global_pool`` is out of range.
    """

    cascade: Sequence[float] = (1.0,)  # all layers keep the same tokens

    def __init__(
        self,
        keep_ratio: float,
        per_image: bool = False,
        global_pool: str = 'all',
        score_border: bool = False,
        **arguments: Any,
    ) -> None:
        check_ratios('keep_ratio', (keep_ratio,))
        self.keep_ratio = keep_ratio
        self.per_image = per_image
        self.global_pool = global_pool
        self.score_border = score_border
        self._warned = False
        # mmdet's constructors modify the dicts that they are given.
        super().__init__(**copy.deepcopy(arguments))

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of all levels, fine to coarse, each (B, C, H, W)."""
        features = self.backbone(batch_inputs)
        if not self.with_neck:
            return features
        expected = [conv.conv.in_channels for conv in getattr(self.neck, 'convs', ())]
        returned = [x.shape[1] for x in features]
        if expected and expected != returned:
            raise ValueError(
                'neck.in_channels must be the channels of the feature maps that the '
                f'backbone returns: {type(self.backbone).__name__} with out_indices='
                f'{getattr(self.backbone, "out_indices", None)} returns {returned}; '
                f'got in_channels={expected}.'
            )
        return self.neck(features)

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Flatten the feature maps and count the valid tokens of every image."""
        encoder_inputs, decoder_inputs = super().pre_transformer(
            mlvl_feats, batch_data_samples
        )
        level_sizes = tuple(tuple(x.shape[-2:]) for x in mlvl_feats)
        images = [sample.img_shape[:2] for sample in batch_data_samples]
        canvas = batch_data_samples[0].batch_input_shape
        sizes = valid_sizes(level_sizes, canvas, images)  # (B, levels, 2)
        encoder_inputs.update(level_sizes=level_sizes, num_valid=sizes.prod(-1).sum(-1))
        return encoder_inputs, decoder_inputs

    def score_and_select(
        self,
        tokens: Tensor,
        padding: Tensor | None,
        valid_ratios: Tensor,
        level_sizes: LevelSizes,
        num_valid: Tensor,
    ) -> ScoredTokens:
        """Score all tokens and select those that each encoder layer updates.

        Args:
            tokens: Features with position embeddings, (B, N, C).
            padding: True for padding, (B, N); None for no padding.
            valid_ratios: Fraction of the width and height of every level that is not
                padding, (B, levels, 2).
            level_sizes: Height and width of every level.
            num_valid: Number of tokens that are not padding, (B,), on the CPU.

        Returns:
            Their centers, proposals and logits, and the selection, which passes no
            gradient.
        """
        centers = level_centers(level_sizes, valid_ratios)
        proposals = level_proposals(centers, level_sizes, padding)
        ignored = padding if self.score_border else proposals[..., 0].isinf()
        scored = self.project_tokens(tokens, ignored)
        logits = self.token_selector(scored, level_sizes, ignored)
        selection = select_tokens(
            logits.detach(),
            padding,
            num_valid,
            self.keep_ratio,
            self.cascade,
            self.per_image,
        )
        return ScoredTokens(centers, proposals, logits, selection)

    def project_tokens(self, tokens: Tensor, ignored: Tensor | None) -> Tensor:
        """Project and normalize tokens, (B, N, C), before they are ranked.

        Args:
            tokens: (B, N, C).
            ignored: True for tokens that are replaced by zeros first, (B, N).

        Returns:
            (B, N, C).
        """
        if ignored is not None:
            tokens = tokens.masked_fill(ignored[..., None], 0)
        return self.memory_trans_norm(self.memory_trans_fc(tokens))

    def rank_queries(
        self, memory: Tensor, proposals: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify all tokens, and find the best, from which the queries start.

        Args:
            memory: All tokens, (B, N, C).
            proposals: Box logits, infinite where there is no proposal, (B, N, 4).

        Returns:
            The projected tokens, (B, N, C), their class logits, (B, N, classes), and
            the indices of the best, (B, Q).
        """
        tokens = self.project_tokens(memory, proposals[..., 0].isinf())
        class_logits = self.bbox_head.cls_branches[self.decoder.num_layers](tokens)
        num_queries = self._num_queries(memory.shape[1])
        rows = self._rank_scores(class_logits).topk(num_queries).indices
        return tokens, class_logits, rows

    def _rank_scores(self, class_logits: Tensor) -> Tensor:
        """Return the score of every token by its class logits, (B, N)."""
        return class_logits.amax(-1)

    def _finish_layers(self, head: type, example: str) -> None:
        """Exchange mmcv's operators; raise ValueError for another type of head."""
        replace_operators(self)
        if not isinstance(self.bbox_head, head):
            raise ValueError(
                f'bbox_head must be a head with {head.__name__}, for example of type '
                f'mmsparse.{example}; got {type(self.bbox_head).__name__}.'
            )

    def _num_queries(self, num_tokens: int) -> int:
        if num_tokens < self.num_queries and not self._warned:
            self._warned = True
            warnings.warn(
                f'Images of {num_tokens} tokens are too small for num_queries='
                f'{self.num_queries}; the decoder starts from all their tokens.',
                stacklevel=2,
            )
        return min(self.num_queries, num_tokens)


class FewQueries:
    """Mixin for heads of mmdet's DETRs: small images have fewer detections."""

    def _predict_by_feat_single(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        img_meta: dict,
        rescale: bool = True,
    ) -> InstanceData:
        """Allow small images to have fewer detections than ``max_per_img``."""
        queries, classes = cls_score.shape
        wanted = self.test_cfg.get('max_per_img', queries)
        missing = max(-(-wanted // classes) - queries, 0)
        results = super()._predict_by_feat_single(
            F.pad(cls_score, (0, 0, 0, missing), value=float('-inf')),
            F.pad(bbox_pred, (0, 0, 0, missing)),
            img_meta,
            rescale,
        )
        return results[: queries * classes]


def check_ratios(name: str, ratios: Sequence[float]) -> None:
    """Raise ValueError for a fraction that is not in (0, 1]."""
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f'{name} must be in (0, 1]; got {ratios}.')
