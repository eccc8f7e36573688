"""DINO's decoder for any width, without GPU synchronization."""

from typing import Any

import torch
from mmdet.models.layers import (
    MLP,
    DeformableDetrTransformerDecoderLayer,
    DinoTransformerDecoder,
    coordinate_to_encoding,
    inverse_sigmoid,
)
from mmengine.model import ModuleList
from torch import Tensor, nn

from mmsparse.models.detectors.detr_attention import (
    DeformableAttention,
    SelfAttention,
)

BOX_EPS = 1e-3  # detrex's eps for the logits of boxes


class DinoDecoder(DinoTransformerDecoder):
    """DINO's decoder with C / 2 features per encoded box coordinate, as released.

    mmdet 3.3 has 128 features whatever the width C; onedl-mmdetection has C, which the
    official weights do not fit. Arguments are those of mmdet's decoder.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self.layers = ModuleList(
            DinoDecoderLayer(**self.layer_cfg) for _ in range(self.num_layers)
        )
        width = self.embed_dims
        self.ref_point_head = MLP(2 * width, width, width, 2)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        self_attn_mask: Tensor | None,
        reference_points: Tensor,
        valid_ratios: Tensor,
        reg_branches: nn.ModuleList,
        **levels: Any,
    ) -> tuple[Tensor, Tensor]:
        """Refine queries and their boxes, layer by layer.

        Args:
            query: (B, Q, C).
            value: The tokens of all levels, (B, N, C).
            key_padding_mask: True for padding, (B, N).
            self_attn_mask: True where a query must not attend to another, (Q, Q).
            reference_points: Boxes (cx, cy, w, h) from 0 to 1, (B, Q, 4).
            valid_ratios: Fraction of the width and height of every level that is not
                padding, (B, levels, 2).
            reg_branches: Heads that refine the boxes, one per layer.
            **levels: ``spatial_shapes``, ``level_sizes`` and ``observe`` for
                :class:`DeformableAttention`.

        Returns:
            The normalized queries of all layers, (layers, B, Q, C), and the boxes
            before the first and after every layer, (layers + 1, B, Q, 4).

        Source: DINO, arXiv 2203.03605, section 3.5: the returned boxes keep the
        gradient of one layer more than those that the next layer starts from.
        """
        states, boxes = [], [reference_points]
        ratios = valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, levels, 4)
        for layer, refine in zip(self.layers, reg_branches, strict=False):
            scaled = reference_points[:, :, None] * ratios
            encoding = coordinate_to_encoding(
                scaled[:, :, 0], num_feats=self.embed_dims // 2
            )
            query = layer(
                query,
                query_pos=self.ref_point_head(encoding),
                value=value,
                key_padding_mask=key_padding_mask,
                self_attn_mask=self_attn_mask,
                reference_points=scaled,
                **levels,
            )
            logits = inverse_sigmoid(reference_points, eps=BOX_EPS)
            boxes.append((logits + refine(query)).sigmoid())
            reference_points = boxes[-1].detach()
            states.append(self.norm(query))
        return torch.stack(states), torch.stack(boxes)


class DinoDecoderLayer(DeformableDetrTransformerDecoderLayer):
    """mmdet's decoder layer with the attention modules of mmsparse; same arguments."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.self_attn = SelfAttention(**self.self_attn_cfg)
        self.cross_attn = DeformableAttention(**self.cross_attn_cfg)
