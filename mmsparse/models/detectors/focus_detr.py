"""Focus-DETR: DINO whose encoder updates only foreground tokens.

The steps of mmdet's detection transformers, in the order in which they run, and what
Focus-DETR changes in each:

1. ``extract_feat``: backbone and neck; checks that their channels agree.
2. ``pre_transformer``: flattens the feature maps and counts valid tokens.
3. ``forward_encoder``: scores all tokens (:class:`ForegroundTokenSelector`), selects
   the foreground (:func:`~mmsparse.ops.tokens.select_tokens`) and refines it
   (:class:`FocusEncoder`).
4. ``pre_decoder``: starts the queries from the best tokens, adds DINO's noised boxes.
5. ``forward_decoder``: refines queries and boxes (:class:`DinoDecoder`).
6. Head: DINO's, and the foreground loss (:class:`FocusDETRHead`).

Steps 1 to 3 are those of :class:`FocusedTransformer`, which any DETR of mmdet can use;
they share all but the scorer and the encoder with Sparse DETR. Steps 4 to 6 belong to
DINO.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import DINOHead
from mmdet.models.detectors import DINO
from mmdet.models.layers import inverse_sigmoid
from mmdet.structures import OptSampleList
from torch import Tensor

from mmsparse.models.detectors.batched_targets import BatchedTargets
from mmsparse.models.detectors.dino_decoder import BOX_EPS, DinoDecoder
from mmsparse.models.detectors.focus_encoder import FocusEncoder
from mmsparse.models.detectors.foreground_loss import ForegroundSupervision
from mmsparse.models.detectors.selective_transformer import (
    FewQueries,
    LevelSizes,
    SelectiveTransformer,
    check_ratios,
)
from mmsparse.models.detectors.token_selector import ForegroundTokenSelector
from mmsparse.ops.tokens import gather_tokens
from mmsparse.registry import MODELS


class FocusedTransformer(SelectiveTransformer):
    """Mixin that adds token selection and :class:`FocusEncoder` to a DETR of mmdet.

    Use it as ``class MyDETR(FocusedTransformer, DeformableDETR)``. The DETR must have
    ``memory_trans_fc`` and ``memory_trans_norm``, as two-stage detectors do, and a head
    with :class:`ForegroundSupervision`.

    Args:
        keep_ratio: Fraction of an image's tokens that is foreground, in (0, 1].
        cascade: Fraction of the foreground that each encoder layer keeps, in (0, 1].
            The mean of ``keep_ratio`` times these is the keep ratio of the paper.
        num_object_tokens: Number of tokens per layer that attend to each other; 0
            disables this attention.
        value_source: Values of the deformable attention: the ``input`` of the encoder
            in all layers, as released, or the ``current`` tokens, as in the paper.
        object_score: How foreground and class scores are combined: product of their
            ``logit``, as released, or of their ``prob``, as in the paper; or only the
            ``class`` or the ``foreground``.
        top_down: Whether the foreground logits of a coarser level scale the tokens of
            the next finer one.
        **arguments: Those of :class:`SelectiveTransformer` and of the DETR. Unless
            ``per_image``, the detections of an image depend on the rest of its batch.

    Raises:
        ValueError: An argument is out of range or inconsistent with another.
    """

    def __init__(
        self,
        keep_ratio: float = 0.5,
        cascade: Sequence[float] = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2),
        num_object_tokens: int = 300,
        value_source: str = 'input',
        object_score: str = 'logit',
        top_down: bool = True,
        **arguments: Any,
    ) -> None:
        check_ratios('cascade', cascade)
        self.cascade = tuple(cascade)
        self.top_down = top_down
        self._encoder_options = dict(
            num_object_tokens=num_object_tokens,
            value_source=value_source,
            object_score=object_score,
        )
        super().__init__(keep_ratio, **arguments)

    def _init_layers(self) -> None:
        encoder = self.encoder
        super()._init_layers()
        self.encoder = FocusEncoder(**encoder, **self._encoder_options)
        self.token_selector = ForegroundTokenSelector(
            self.embed_dims, self.num_feature_levels, self.global_pool, self.top_down
        )
        self._finish_layers(ForegroundSupervision, 'FocusDETRHead')
        self._check()

    def _check(self) -> None:
        layers = self.encoder.num_layers
        if len(self.cascade) != layers:
            raise ValueError(
                'cascade must have one number for each encoder layer, '
                f'encoder.num_layers={layers}; got {self.cascade}.'
            )
        strides = self.bbox_head.loss_foreground.strides
        if len(strides) != self.num_feature_levels:
            raise ValueError(
                'bbox_head.loss_foreground.strides must have one number for each of '
                f'the num_feature_levels={self.num_feature_levels}; got {strides}.'
            )

    def forward_encoder(
        self,
        feat: Tensor,  # (B, N, C)
        feat_mask: Tensor | None,  # True for padding, (B, N)
        feat_pos: Tensor,  # (B, N, C)
        spatial_shapes: Tensor,  # (levels, 2)
        level_start_index: Tensor,
        valid_ratios: Tensor,  # (B, levels, 2)
        level_sizes: LevelSizes,  # spatial_shapes as integers
        num_valid: Tensor,  # tokens that are not padding, (B,), on the CPU
    ) -> dict[str, Any]:
        """Score all tokens, select the foreground and refine it by the encoder."""
        tokens = self.score_and_select(
            feat + feat_pos, feat_mask, valid_ratios, level_sizes, num_valid
        )
        memory = self.encoder(  # the other tokens keep their values
            query=feat,
            query_pos=feat_pos,
            key_padding_mask=feat_mask,
            centers=tokens.centers,
            valid_ratios=valid_ratios,
            selection=tokens.selection,
            class_head=self.class_head,
            spatial_shapes=spatial_shapes,
            level_sizes=level_sizes,
        )
        return dict(
            memory=memory,
            memory_mask=feat_mask,
            spatial_shapes=spatial_shapes,
            proposals=tokens.proposals,
            foreground_logits=tokens.logits,
            level_sizes=level_sizes,
        )

    def pre_decoder(
        self,
        memory: Tensor,  # (B, N, C)
        memory_mask: Tensor | None,  # True for padding, (B, N)
        spatial_shapes: Tensor,  # (levels, 2)
        proposals: Tensor,  # the DETR computes its own
        foreground_logits: Tensor,  # (B, N)
        level_sizes: LevelSizes,
        **samples: OptSampleList,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Prepare the queries; pass the foreground logits to the head in training."""
        decoder_inputs, head_inputs = super().pre_decoder(
            memory, memory_mask, spatial_shapes, **samples
        )
        if self.training:
            head_inputs.update(
                foreground_logits=foreground_logits, level_sizes=level_sizes
            )
        return decoder_inputs, head_inputs

    @property
    def class_head(self) -> Callable[[Tensor], Tensor]:
        """Maps tokens, (B, K, C), to the class logits that rank object tokens."""
        return self.bbox_head.cls_branches[-1]


@MODELS.register_module()
class FocusDETR(FocusedTransformer, DINO):
    """Focus-DETR, written as its difference to mmdet's DINO.

    Paper: `Less is More: Focus Attention for Efficient DETR
    <https://arxiv.org/abs/2307.12612>`_. A scorer supervised by the boxes ranks the
    tokens of all levels. The encoder updates the best of them, fewer in each layer, and
    lets the most object-like ones attend to each other. With default arguments it
    reproduces the outputs of the weights released for detrex.

    Neck, denoising, decoder and losses are DINO's, for any width, number of levels and
    depth. The head must be of type ``mmsparse.FocusDETRHead``.

    Args:
        **arguments: Those of :class:`FocusedTransformer` and of mmdet's DINO.

    Raises:
        ValueError: An argument is out of range or inconsistent with another.
    """

    def _init_layers(self) -> None:
        decoder = self.decoder
        super()._init_layers()
        self.decoder = DinoDecoder(**decoder)

    def pre_decoder(
        self,
        memory: Tensor,  # (B, N, C)
        memory_mask: Tensor | None,
        spatial_shapes: Tensor,
        proposals: Tensor,  # box logits, infinite where there is no proposal, (B, N, 4)
        foreground_logits: Tensor,  # (B, N)
        level_sizes: LevelSizes,
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the queries from the best tokens; in training add DINO's noised boxes.

        Unlike DINO, run the box head on the selected tokens only, and accept images
        with fewer tokens than queries.
        """
        tokens, class_logits, rows = self.rank_queries(memory, proposals)
        boxes = self.bbox_head.reg_branches[-1](gather_tokens(tokens, rows))
        boxes = boxes + gather_tokens(proposals, rows)  # (B, num_queries, 4)

        query = self.query_embedding.weight[: rows.shape[1]]
        query = query.expand(memory.shape[0], -1, -1)
        references = boxes.detach()
        decoder_inputs = dict(memory=memory, dn_mask=None, level_sizes=level_sizes)
        head_inputs: dict[str, Any] = {}
        if self.training:
            noised, noised_boxes, mask, meta = self.dn_query_generator(
                batch_data_samples
            )
            query = torch.cat([noised, query], dim=1)
            references = torch.cat([noised_boxes, references], dim=1)
            decoder_inputs['dn_mask'] = mask[: query.shape[1], : query.shape[1]]
            head_inputs = dict(
                enc_outputs_class=gather_tokens(class_logits, rows),
                enc_outputs_coord=boxes.sigmoid(),
                dn_meta=meta,
                foreground_logits=foreground_logits,
                level_sizes=level_sizes,
            )
        decoder_inputs.update(query=query, reference_points=references.sigmoid())
        return decoder_inputs, head_inputs

    def forward_decoder(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        dn_mask: Tensor | None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Run the decoder; return the hidden states and boxes of all layers."""
        states, references = self.decoder(
            value=memory,
            key_padding_mask=memory_mask,
            self_attn_mask=dn_mask,
            reg_branches=self.bbox_head.reg_branches,
            **inputs,
        )
        if self.training:
            # Without a box in the batch this embedding would get no gradient, and
            # distributed training would wait for one.
            unused = 0 * self.dn_query_generator.label_embedding.weight[0, 0]
            states = states + unused
        return dict(hidden_states=states, references=list(references))


@MODELS.register_module()
class FocusDETRHead(FewQueries, BatchedTargets, ForegroundSupervision, DINOHead):
    """DINO's head with a foreground loss.

    Arguments are those of :class:`ForegroundSupervision` and of mmdet's DINOHead.
    """

    def forward(
        self,
        hidden_states: Tensor,  # (layers, B, Q, C)
        references: list[Tensor],  # boxes before every layer, each (B, Q, 4)
    ) -> tuple[Tensor, Tensor]:
        """Compute class logits and boxes (cx, cy, w, h) of all layers."""
        # mmdet's head takes logits of boxes with eps=1e-5, detrex with BOX_EPS.
        references = [inverse_sigmoid(x, eps=BOX_EPS).sigmoid() for x in references]
        return super().forward(hidden_states, references)
