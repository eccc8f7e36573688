"""What Focus-DETR adds to a detection transformer of mmdet: tokens, and an encoder."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from mmdet.structures import OptSampleList
from torch import Tensor

from mmsparse.models.detectors.focus_detr_head import ForegroundSupervision
from mmsparse.models.detectors.focus_encoder import FocusEncoder
from mmsparse.models.detectors.token_selector import ForegroundTokenSelector
from mmsparse.ops.pyramid import level_centers, level_proposals, valid_sizes
from mmsparse.ops.tokens import select_tokens


class FocusedTransformer:
    """Token selector and encoder, to stand before a detection transformer of mmdet.

    ``class MyDETR(FocusedTransformer, DeformableDETR)``: the other class has
    ``memory_trans_fc`` and ``memory_trans_norm`` as two-stage detectors do, and a head
    with :class:`ForegroundSupervision`; its ``pre_decoder`` takes ``proposals``,
    ``foreground_logits`` and ``level_sizes`` too, and hands the last two on to the
    head while training.

    Args:
        keep_ratio: Part of a picture's tokens that are its foreground, in (0, 1].
        cascade: Part of the foreground that each layer of the encoder keeps, in (0, 1];
            the mean of the products is what the paper calls keep ratio.
        num_object_tokens: Tokens of each layer that attend to each other; 0 leaves this
            attention out.
        value_source: What deformable attention reads: the ``input`` of the encoder in
            all layers, as in the release, or the ``current`` tokens, as in the paper.
        object_score: How foreground and class make the score of an object token: the
            product of their ``logit``, as in the release, or of their ``prob``, as in
            the paper.
        per_image: Let every picture keep a part of its own tokens. Otherwise the one
            with the most tells for the batch, as in the release, and results change
            with the other pictures of the batch.
        global_pool: Cells that the scorer averages over: ``all``, as in the release, or
            the ``valid`` ones, without padding.
        score_border: Score tokens at the border of the picture by their features; in
            the release they all have the same.
        **arguments: Those of the transformer. They are not changed.

    Raises:
        ValueError: An argument is out of range or does not fit another.
    """

    def __init__(
        self,
        keep_ratio: float = 0.5,
        cascade: Sequence[float] = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2),
        num_object_tokens: int = 300,
        value_source: str = 'input',
        object_score: str = 'logit',
        per_image: bool = False,
        global_pool: str = 'all',
        score_border: bool = False,
        **arguments: Any,
    ) -> None:
        for name, ratios in (('keep_ratio', (keep_ratio,)), ('cascade', cascade)):
            if not all(0 < ratio <= 1 for ratio in ratios):
                raise ValueError(f'{name} must be in (0, 1]; got {ratios}.')
        self.keep_ratio = keep_ratio
        self.cascade = tuple(cascade)
        self.per_image = per_image
        self.global_pool = global_pool
        self.score_border = score_border
        self._encoder_options = dict(
            num_object_tokens=num_object_tokens,
            value_source=value_source,
            object_score=object_score,
        )
        # mmdet's constructors write into the dicts that they are given.
        super().__init__(**copy.deepcopy(arguments))

    def _init_layers(self) -> None:
        encoder = self.encoder
        super()._init_layers()
        self.encoder = FocusEncoder(**encoder, **self._encoder_options)
        self.token_selector = ForegroundTokenSelector(
            self.embed_dims, self.num_feature_levels, self.global_pool
        )
        self._check()

    def _check(self) -> None:
        layers = self.encoder.num_layers
        if len(self.cascade) != layers:
            raise ValueError(
                'cascade must have one number for each layer of the encoder, encoder.'
                f'num_layers={layers}; got {self.cascade}.'
            )
        if not isinstance(self.bbox_head, ForegroundSupervision):
            raise ValueError(
                'bbox_head must be a head with ForegroundSupervision, for example of '
                f'type mmsparse.FocusDETRHead; got {type(self.bbox_head).__name__}.'
            )
        strides = self.bbox_head.loss_foreground.strides
        if len(strides) != self.num_feature_levels:
            raise ValueError(
                'bbox_head.loss_foreground.strides must have one number for each of '
                f'the num_feature_levels={self.num_feature_levels}; got {strides}.'
            )

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of all levels.

        Args:
            batch_inputs: Pictures, (B, 3, H, W).

        Returns:
            One (B, C, H', W') a level, fine to coarse.

        Raises:
            ValueError: The neck is for other maps than the backbone returns.
        """
        features = self.backbone(batch_inputs)
        if not self.with_neck:
            return features
        expected = [conv.conv.in_channels for conv in getattr(self.neck, 'convs', ())]
        returned = [x.shape[1] for x in features]
        if expected and expected != returned:
            raise ValueError(
                'neck.in_channels must be the channels of the maps that the backbone '
                f'returns: {type(self.backbone).__name__} with out_indices='
                f'{getattr(self.backbone, "out_indices", None)} returns {returned}; '
                f'got in_channels={expected}.'
            )
        return self.neck(features)

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Flatten the maps; the sizes of all that follows are known from here on.

        Args:
            mlvl_feats: One (B, C, H, W) a level, fine to coarse.
            batch_data_samples: Pictures with their sizes before padding.

        Returns:
            What the encoder and what the decoder need.
        """
        encoder_inputs, decoder_inputs = super().pre_transformer(
            mlvl_feats, batch_data_samples
        )
        level_sizes = tuple(tuple(x.shape[-2:]) for x in mlvl_feats)
        pictures = [sample.img_shape[:2] for sample in batch_data_samples]
        canvas = batch_data_samples[0].batch_input_shape
        sizes = valid_sizes(level_sizes, canvas, pictures)
        encoder_inputs.update(level_sizes=level_sizes, num_valid=sizes.prod(-1).sum(-1))
        return encoder_inputs, decoder_inputs

    def forward_encoder(
        self,
        feat: Tensor,
        feat_mask: Tensor | None,
        feat_pos: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        valid_ratios: Tensor,
        level_sizes: tuple[tuple[int, int], ...],
        num_valid: Tensor,
    ) -> dict[str, Any]:
        """Score the tokens, choose the foreground and let the encoder work on it.

        Args:
            feat: Tokens, (B, N, C).
            feat_mask: True for padding, (B, N); None for no padding.
            feat_pos: Their positions, (B, N, C).
            spatial_shapes: Height and width of every level, (levels, 2).
            level_start_index: First token of every level, (levels,); not used.
            valid_ratios: Part of the width and of the height of every level that is
                not padding, (B, levels, 2).
            level_sizes: ``spatial_shapes`` as numbers.
            num_valid: Number of tokens without padding, (B,), on the CPU.

        Returns:
            What ``pre_decoder`` needs.

        Raises:
            ValueError: A layer of the encoder would keep no token.
        """
        centers = level_centers(level_sizes, valid_ratios)
        proposals = level_proposals(centers, level_sizes, feat_mask)
        ignored = feat_mask if self.score_border else proposals[..., 0].isinf()
        scored = self.project_tokens(feat + feat_pos, ignored)
        logits = self.token_selector(scored, level_sizes, ignored)
        selection = select_tokens(
            logits.detach(),
            feat_mask,
            num_valid,
            self.keep_ratio,
            self.cascade,
            self.per_image,
        )
        memory = self.encoder(
            query=feat,
            query_pos=feat_pos,
            key_padding_mask=feat_mask,
            centers=centers,
            valid_ratios=valid_ratios,
            selection=selection,
            class_head=self.class_head,
            spatial_shapes=spatial_shapes,
            level_sizes=level_sizes,
        )
        return dict(
            memory=memory,
            memory_mask=feat_mask,
            spatial_shapes=spatial_shapes,
            proposals=proposals,
            foreground_logits=logits,
            level_sizes=level_sizes,
        )

    @property
    def class_head(self) -> Callable[[Tensor], Tensor]:
        """Tokens, (B, K, C), to class logits by which object tokens are ranked."""
        return self.bbox_head.cls_branches[-1]

    def project_tokens(self, tokens: Tensor, ignored: Tensor | None) -> Tensor:
        """Prepare tokens for being ranked.

        Args:
            tokens: (B, N, C).
            ignored: True for those that take part as zeros, (B, N).

        Returns:
            (B, N, C).
        """
        if ignored is not None:
            tokens = tokens.masked_fill(ignored[..., None], 0)
        return self.memory_trans_norm(self.memory_trans_fc(tokens))
