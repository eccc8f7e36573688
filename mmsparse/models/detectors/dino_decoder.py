"""DINO's decoder at any width, without waiting for the GPU."""

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

BOX_EPS = 1e-3  # of detrex, where logits of boxes are taken


class DinoDecoder(DinoTransformerDecoder):
    """DINO's decoder, whose positional encoding is of the width of the model.

    mmdet 3.3 has 128 features a coordinate whatever the width; onedl-mmdetection has
    C, which official weights do not fit. They have C / 2, and so have we on either.
    Arguments are those of mmdet's decoder.
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
        **maps: Any,
    ) -> tuple[Tensor, Tensor]:
        """Refine queries and their boxes, layer by layer.

        Args:
            query: (B, Q, C).
            value: The tokens of all maps, (B, N, C).
            key_padding_mask: True for padding in the maps, (B, N).
            self_attn_mask: True where a query does not see another, (Q, Q).
            reference_points: Boxes (cx, cy, w, h) from 0 to 1, (B, Q, 4).
            valid_ratios: Part of the width and of the height of every level that is
                not padding, (B, levels, 2).
            reg_branches: Heads that refine the boxes, one a layer.
            **maps: What :class:`DeformableAttention` needs to know of the levels.

        Returns:
            The normed queries of all layers, (layers, B, Q, C), and the boxes before
            the first and after every layer, (layers + 1, B, Q, 4).

        Source: DINO, arXiv 2203.03605, section 3.5: the boxes that are returned keep
        the gradient of one layer more than those that the next layer starts from.
        """
        states, boxes = [], [reference_points]
        ratios = valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, levels, 4)
        for layer, refine in zip(self.layers, reg_branches, strict=False):
            places = reference_points[:, :, None] * ratios
            encoding = coordinate_to_encoding(
                places[:, :, 0], num_feats=self.embed_dims // 2
            )
            query = layer(
                query,
                query_pos=self.ref_point_head(encoding),
                value=value,
                key_padding_mask=key_padding_mask,
                self_attn_mask=self_attn_mask,
                reference_points=places,
                **maps,
            )
            start = inverse_sigmoid(reference_points, eps=BOX_EPS)
            boxes.append((refine(query) + start).sigmoid())
            reference_points = boxes[-1].detach()
            states.append(self.norm(query))
        return torch.stack(states), torch.stack(boxes)


class DinoDecoderLayer(DeformableDetrTransformerDecoderLayer):
    """mmdet's layer with our attention modules; arguments are those of mmdet's."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.self_attn = SelfAttention(**self.self_attn_cfg)
        self.cross_attn = DeformableAttention(**self.cross_attn_cfg)
