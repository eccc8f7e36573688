"""Sparse DETR: Deformable DETR whose encoder updates the tokens that its decoder reads.

The steps of mmdet's two-stage Deformable DETR, in the order in which they run, and what
Sparse DETR changes in each:

1. ``extract_feat``, ``pre_transformer``: as in every :class:`SelectiveTransformer`.
2. ``forward_encoder``: scores all tokens (:class:`TokenSelector`), selects the best
   (:func:`~mmsparse.ops.tokens.select_tokens`) and refines them, the same in all layers
   (:class:`SelectiveEncoder`).
3. ``pre_decoder``: starts boxes and content of the queries from the best tokens.
4. ``forward_decoder``: refines queries and boxes; in training it sums up the attention
   on every token (:class:`DecoderAttentionMap`).
5. Head: Deformable DETR's, with losses after every encoder layer, on the selected
   tokens, and the loss of the token selector (:class:`SparseDETRHead`).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import DeformableDetrTransformerDecoder
from mmdet.structures import SampleList
from mmdet.utils import InstanceList
from mmengine.model import ModuleList
from torch import Tensor, nn

from mmsparse.models.detectors.attention_map_loss import (
    AttentionMapLoss,
    DecoderAttentionMap,
    kept_attention,
)
from mmsparse.models.detectors.batched_targets import ABSENT, BatchedTargets
from mmsparse.models.detectors.dino_decoder import DinoDecoderLayer
from mmsparse.models.detectors.selective_encoder import SelectiveEncoder
from mmsparse.models.detectors.selective_transformer import (
    FewQueries,
    LevelSizes,
    ScoredTokens,
    SelectiveTransformer,
)
from mmsparse.models.detectors.token_selector import TokenSelector
from mmsparse.models.layers.common import check_choice
from mmsparse.ops.tokens import gather_tokens
from mmsparse.registry import MODELS

QUERY_CONTENTS = ('token', 'box')


@MODELS.register_module()
class SparseDETR(SelectiveTransformer, DeformableDETR):
    """Sparse DETR, written as its difference to mmdet's two-stage Deformable DETR.

    Paper: `Sparse DETR: Efficient End-to-End Object Detection with Learnable Sparsity
    <https://arxiv.org/abs/2111.14330>`_. A scorer, trained to predict which tokens the
    decoder attends to, ranks the tokens of all levels; the encoder updates the best.
    With default arguments it reproduces the outputs and losses of the released code.

    Any width, number of levels (at most five have proposals) and depth work. The head
    must be of type ``mmsparse.SparseDETRHead``.

    Args:
        keep_ratio: Fraction of an image's tokens that the encoder updates, in (0, 1];
            it may be changed after training.
        exact_map: Supervise by the cells that the decoder samples. Otherwise they are
            displaced by half a cell, as released.
        query_content: What the content of a query is at first: the ``token`` that it
            starts from, as published, or a projection of its ``box``, as in Deformable
            DETR.
        class_agnostic: Select queries by the first class logit, trained to separate
            objects from background, as in Deformable DETR.
        encoder_losses: Add losses after every encoder layer, as published.
        with_box_refine: Must be true.
        as_two_stage: Must be true.
        **arguments: Those of :class:`SelectiveTransformer` and of mmdet's
            DeformableDETR. Unless ``per_image``, the auxiliary losses of an image
            include tokens that it keeps only because another is larger.

    Raises:
        ValueError: An argument is out of range or inconsistent with another.
    """

    def __init__(
        self,
        keep_ratio: float = 0.3,
        exact_map: bool = False,
        query_content: str = 'token',
        class_agnostic: bool = False,
        encoder_losses: bool = True,
        with_box_refine: bool = True,
        as_two_stage: bool = True,
        **arguments: Any,
    ) -> None:
        if not (with_box_refine and as_two_stage):
            raise ValueError(
                'Sparse DETR starts from its best tokens and refines their boxes: '
                'with_box_refine and as_two_stage must be true; got '
                f'{with_box_refine} and {as_two_stage}.'
            )
        check_choice('query_content', query_content, QUERY_CONTENTS)
        self.exact_map = exact_map
        self.query_content = query_content
        self.class_agnostic = class_agnostic
        self.encoder_losses = encoder_losses
        super().__init__(
            keep_ratio, with_box_refine=True, as_two_stage=True, **arguments
        )

    def _init_layers(self) -> None:
        encoder, decoder = self.encoder, self.decoder
        super()._init_layers()
        self.encoder = SelectiveEncoder(**encoder)
        self.decoder = SparseDecoder(**decoder)
        if self.query_content == 'token':  # only the position is projected
            self.pos_trans_fc = nn.Linear(2 * self.embed_dims, self.embed_dims)
            self.pos_trans_norm = nn.LayerNorm(self.embed_dims)
        self.token_selector = TokenSelector(self.embed_dims, self.global_pool)
        self._finish_layers(SparseDETRHead, 'SparseDETRHead')
        self.bbox_head.class_agnostic = self.class_agnostic
        if self.encoder_losses:
            self.bbox_head.add_branches(self.encoder.num_layers - 1)

    def _rank_scores(self, class_logits: Tensor) -> Tensor:
        if self.class_agnostic:
            return class_logits[..., 0]
        return super()._rank_scores(class_logits)

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
        """Score all tokens, select the best and refine them by the encoder."""
        tokens = self.score_and_select(
            feat + feat_pos, feat_mask, valid_ratios, level_sizes, num_valid
        )
        memory, states = self.encoder(
            query=feat,
            query_pos=feat_pos,
            key_padding_mask=feat_mask,
            centers=tokens.centers,
            valid_ratios=valid_ratios,
            selection=tokens.selection,
            spatial_shapes=spatial_shapes,
            level_sizes=level_sizes,
        )
        return dict(
            memory=memory,
            memory_mask=feat_mask,
            spatial_shapes=spatial_shapes,
            tokens=tokens,
            states=states,
            level_sizes=level_sizes,
        )

    def pre_decoder(
        self,
        memory: Tensor,  # (B, N, C)
        memory_mask: Tensor | None,  # True for padding, (B, N)
        spatial_shapes: Tensor,  # (levels, 2)
        tokens: ScoredTokens,
        states: Sequence[Tensor],  # selected tokens after every layer, (B, K, C) each
        level_sizes: LevelSizes,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the queries from the best of all tokens, selected or not."""
        projected, class_logits, rows = self.rank_queries(memory, tokens.proposals)
        box_head = self.bbox_head.reg_branches[self.decoder.num_layers]
        boxes = box_head(gather_tokens(projected, rows))
        boxes = (boxes + gather_tokens(tokens.proposals, rows)).detach()
        encoding = self.get_proposal_pos_embed(boxes, self.embed_dims // 2)
        query_pos = self.pos_trans_norm(self.pos_trans_fc(encoding))
        if self.query_content == 'token':
            query = gather_tokens(memory, rows)
        else:
            query_pos, query = query_pos.chunk(2, dim=-1)
        decoder_inputs = dict(
            query=query,
            query_pos=query_pos,
            memory=memory,
            reference_points=boxes.sigmoid(),
            level_sizes=level_sizes,
        )
        if not self.training:
            return decoder_inputs, {}
        own = tokens.selection.written[0] if self.per_image else None
        head_inputs = dict(
            enc_outputs_class=class_logits,
            enc_outputs_coord=(box_head(projected) + tokens.proposals).sigmoid(),
            tokens=tokens,
            states=states[:-1] if self.encoder_losses else (),
            own=own,
            padding=memory_mask,
            level_sizes=level_sizes,
        )
        return decoder_inputs, head_inputs

    def forward_decoder(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        reference_points: Tensor,
        level_sizes: LevelSizes,
        **levels: Any,
    ) -> dict[str, Any]:
        """Run the decoder; return the hidden states and boxes of all layers.

        In training also the attention on every token, ``attention_map``, (B, N).
        """
        attention_map = DecoderAttentionMap(level_sizes, self.exact_map)
        states, references = self.decoder(
            query=query,
            query_pos=query_pos,
            value=memory,
            key_padding_mask=memory_mask,
            reference_points=reference_points,
            reg_branches=self.bbox_head.reg_branches,
            level_sizes=level_sizes,
            observe=attention_map.add if self.training else None,
            **levels,
        )
        outputs = dict(hidden_states=states, references=[reference_points, *references])
        if self.training:
            outputs['attention_map'] = attention_map.total
        return outputs


class SparseDecoder(DeformableDetrTransformerDecoder):
    """mmdet's decoder with the attention modules of mmsparse; same arguments."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.layers = ModuleList(
            DinoDecoderLayer(**self.layer_cfg) for _ in range(self.num_layers)
        )


@MODELS.register_module()
class SparseDETRHead(FewQueries, BatchedTargets, DeformableDETRHead):
    """Deformable DETR's head with losses for encoder layers and the token selector.

    Its branches belong to the decoder layers, the selection of queries, and all encoder
    layers but the last. All sets of predictions are matched with the true classes,
    those of ``class_agnostic`` query selection excepted, and their losses are divided
    by the number of boxes.

    Args:
        loss_dam: Arguments of :class:`AttentionMapLoss`.
        **arguments: Those of mmdet's DeformableDETRHead.
    """

    class_agnostic = False  # set by the detector

    def __init__(
        self, loss_dam: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.loss_dam = AttentionMapLoss(**({} if loss_dam is None else loss_dam))

    def add_branches(self, count: int) -> None:
        """Add branches for encoder layers, which start as copies."""
        for branches in (self.cls_branches, self.reg_branches):
            branches.extend([copy.deepcopy(branches[-1]) for _ in range(count)])

    def loss(
        self,
        tokens: ScoredTokens,
        states: Sequence[Tensor],  # after encoder layers, (B, K, C) each
        own: Tensor | None,  # the selected tokens that count; None for all, (B, K)
        padding: Tensor | None,  # True for padding, (B, N)
        attention_map: Tensor,  # (B, N)
        level_sizes: LevelSizes,
        batch_data_samples: SampleList,
        **outputs: Any,
    ) -> dict[str, Tensor]:
        """Compute all losses, and the shares of the attention that is on kept tokens.

        Losses of Deformable DETR have its names, those of encoder layers begin with
        ``e0.`` and so on. ``loss_dam`` is that of the token selector. ``corr`` is the
        share over all levels, ``corr_level0`` that on the finest level; it is NaN where
        there is no attention.
        """
        losses = super().loss(batch_data_samples=batch_data_samples, **outputs)
        truths = [sample.gt_instances for sample in batch_data_samples]
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = gather_tokens(tokens.proposals, tokens.selection.rows)
        for i, state in enumerate(states):
            logits, boxes = self.predict_tokens(i, state, proposals)
            if own is not None:
                logits = logits.masked_fill(~own[..., None], ABSENT)
            losses.update(self._named_losses(f'e{i}.', logits, boxes, truths, metas))
        losses['loss_dam'] = self.loss_dam(
            tokens.logits, attention_map, padding, tokens.selection
        )
        shares = kept_attention(attention_map, tokens.selection.rows, level_sizes)
        names = ['corr', *(f'corr_level{i}' for i in range(len(level_sizes)))]
        losses.update(zip(names, shares.mean(1), strict=True))
        return losses

    def predict_tokens(
        self, layer: int, state: Tensor, proposals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predict objects at the selected tokens after an encoder layer.

        Args:
            layer: Index of the layer.
            state: Tokens, (B, K, C).
            proposals: Box logits, infinite where there is no proposal, (B, K, 4).

        Returns:
            Class logits, (B, K, classes), and boxes (cx, cy, w, h) from 0 to 1,
            (B, K, 4).
        """
        branch = self.num_pred_layer + layer
        boxes = self.reg_branches[branch](state) + proposals
        return self.cls_branches[branch](state), boxes.sigmoid()

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        enc_cls_scores: Tensor,
        enc_bbox_preds: Tensor,
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of decoder layers and query selection, by true classes."""
        truth = (batch_gt_instances, batch_img_metas)
        of_selection = (enc_cls_scores, enc_bbox_preds)
        losses = super().loss_by_feat(
            all_layers_cls_scores,
            all_layers_bbox_preds,
            # mmdet replaces the classes of objects by 0.
            *(of_selection if self.class_agnostic else (None, None)),
            *truth,
            batch_gt_instances_ignore,
        )
        if not self.class_agnostic:
            losses.update(self._named_losses('enc_', *of_selection, *truth))
        return losses

    def _named_losses(self, prefix: str, *predictions: Any) -> dict[str, Tensor]:
        values = self.loss_by_feat_single(*predictions)
        names = (f'{prefix}{name}' for name in ('loss_cls', 'loss_bbox', 'loss_iou'))
        return dict(zip(names, values, strict=True))

    def get_targets(
        self,
        cls_scores_list: Sequence[Tensor],
        bbox_preds_list: Sequence[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
    ) -> tuple[Any, ...]:
        """Match predictions with boxes; count all boxes, matched or not."""
        *targets, _, negatives = super().get_targets(
            cls_scores_list, bbox_preds_list, batch_gt_instances, batch_img_metas
        )
        return *targets, sum(len(x) for x in batch_gt_instances), negatives
