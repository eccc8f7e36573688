"""Mask head of DETR: a mask for each query, from its attention to the image.

1. :class:`QueryAttentionMap`: each query's attention over the encoded image, in heads.
2. :class:`MaskNetwork`: a small FPN-like network that turns these heads, and the
   image's feature maps, into a mask at the resolution of the finest one.
3. :class:`DETRPanopticHead`: both, and the losses.

Queries are independent of each other, so masks are computed only for those in need of
one, image by image, and what the queries of an image share is computed once.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmsparse.models.layers.common import check_heads
from mmsparse.registry import MODELS

NUM_GROUPS = 8  # of every GroupNorm
NUM_FEATS = 3  # feature maps that are added, from stages 1 to 3
CHANNELS_UNIT = NUM_GROUPS * 2**4  # the last of four halvings has NUM_GROUPS channels
XAVIER = dict(type='Xavier', layer='Linear', distribution='uniform')
KAIMING = dict(
    type='Kaiming',
    layer='Conv2d',
    a=1,
    mode='fan_in',
    nonlinearity='leaky_relu',
    distribution='uniform',
)
LOSS_MASK = dict(type='FocalLoss', gamma=2.0, alpha=0.25)
LOSS_DICE = dict(type='DiceLoss', naive_dice=True, eps=1.0)


class QueryAttentionMap(nn.Module):
    """Attention weights of queries over the positions of a feature map, in heads.

    Unlike in a layer of attention, the weights of all heads of a query together sum to
    one, there are no values, and positions are not encoded.

    Args:
        query_dims: Number of channels of the queries and of the feature map.
        embed_dims: Number of channels of all heads, a multiple of ``num_heads``.
        num_heads: Number of heads.

    Raises:
        ValueError: ``embed_dims`` is not a multiple of ``num_heads``.
    """

    def __init__(self, query_dims: int, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        check_heads(embed_dims, num_heads, 'embed_dims')
        self.num_heads = num_heads
        self.q_linear = nn.Linear(query_dims, embed_dims)
        self.k_linear = nn.Linear(query_dims, embed_dims)

    def forward(self, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Compare the queries of an image with its positions.

        Args:
            queries: (Q, C).
            memory: (C, H, W).
            mask: True for padding, (H, W); None without any.

        Returns:
            (Q, heads, H, W).
        """
        heads = (self.num_heads, -1)
        q = self.q_linear(queries).unflatten(-1, heads)  # (Q, heads, D)
        k = self.k_linear(memory.flatten(1).T).unflatten(-1, heads)  # (N, heads, D)
        logits = torch.einsum('qhd,nhd->qhn', q * q.shape[-1] ** -0.5, k)
        if mask is not None:
            logits = logits.masked_fill(mask.flatten(), float('-inf'))
        weights = logits.flatten(1).softmax(-1)  # over heads and positions
        return weights.unflatten(1, heads).unflatten(-1, memory.shape[1:])


class MaskNetwork(nn.Module):
    """Network from attention maps of queries and feature maps to masks.

    Args:
        in_channels: Channels of the coarsest feature map.
        num_heads: Number of attention maps of a query. Together with ``in_channels`` a
            multiple of 8, the number of groups of the norms.
        feat_channels: Channels of the other feature maps, fine to coarse.
        channels: Twice the channels on the second coarsest map, which are halved from
            map to map; a multiple of 128.
        chunk_size: Number of queries whose masks are computed at a time; None for all.
        with_cp: Compute the activations of a chunk again in the backward pass.

    Raises:
        ValueError: The numbers of channels, heads or feature maps do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        feat_channels: Sequence[int],
        channels: int,
        chunk_size: int | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        _check(in_channels + num_heads, feat_channels, channels)
        self.chunk_size = chunk_size
        self.with_cp = with_cp
        # Two convolutions on the coarsest map, and one after adding each finer map.
        first = in_channels + num_heads
        widths = [first, *(channels // 2**i for i in range(1, NUM_FEATS + 2))]
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, width, 3, padding=1)
            for inputs, width in pairwise([first, *widths])
        )
        self.norms = nn.ModuleList(nn.GroupNorm(NUM_GROUPS, width) for width in widths)
        self.adapters = nn.ModuleList(  # coarse to fine
            nn.Conv2d(inputs, width, 1)
            for inputs, width in zip(feat_channels[::-1], widths[1:-1], strict=True)
        )
        self.out_conv = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(
        self, attention: Tensor, src: Tensor, feats: Sequence[Tensor]
    ) -> Tensor:
        """Compute the masks of the queries of one image.

        Args:
            attention: Attention maps of the queries, (Q, heads, h, w).
            src: Coarsest feature map, (C, h, w).
            feats: The other feature maps, fine to coarse, each (C', h', w').

        Returns:
            Mask logits of the size of the finest map, (Q, H, W).
        """
        # A convolution is linear: its part on the image is the same for all queries.
        first = self.convs[0]
        shared = F.conv2d(src[None], first.weight[:, : len(src)], first.bias, padding=1)
        finer = [
            adapter(feat[None])
            for adapter, feat in zip(self.adapters, feats[::-1], strict=True)
        ]
        chunks = attention.split(self.chunk_size or max(len(attention), 1))
        if self.with_cp and attention.requires_grad:
            masks = [
                checkpoint(self._refine, chunk, shared, *finer, use_reentrant=False)
                for chunk in chunks
            ]
        else:
            masks = [self._refine(chunk, shared, *finer) for chunk in chunks]
        return torch.cat(masks)

    def _refine(self, attention: Tensor, shared: Tensor, *finer: Tensor) -> Tensor:
        weight = self.convs[0].weight[:, -attention.shape[1] :]
        x = shared + F.conv2d(attention, weight, padding=1)  # (Q, C, h, w)
        x = self.norms[0](x).relu()
        maps = (None, *finer)
        for conv, norm, feat in zip(self.convs[1:], self.norms[1:], maps, strict=True):
            if feat is not None:
                x = feat + F.interpolate(x, feat.shape[-2:])  # nearest
            x = norm(conv(x)).relu()
        return self.out_conv(x)[:, 0]


@MODELS.register_module()
class DETRPanopticHead(BaseModule):
    """Mask head of DETR for panoptic segmentation.

    Paper: `End-to-End Object Detection with Transformers
    <https://arxiv.org/abs/2005.12872>`_, section 4.4.

    Args:
        embed_dims: Channels of the transformer and of the projected last feature map.
        num_heads: Number of heads of the attention map, a divisor of ``embed_dims``.
        feat_channels: Channels of the backbone's other feature maps, fine to coarse.
        channels: Those of :class:`MaskNetwork`; None for ``embed_dims``.
        chunk_size: Number of queries whose masks are computed at a time; None for all.
        with_cp: Compute the activations of a chunk again in the backward pass.
        loss_mask: Config of the loss of pixels.
        loss_dice: Config of the loss of masks.

    Raises:
        ValueError: The numbers of channels, heads or feature maps do not fit.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        feat_channels: Sequence[int] = (256, 512, 1024),
        channels: int | None = None,
        chunk_size: int | None = 25,
        with_cp: bool = False,
        loss_mask: dict[str, Any] = LOSS_MASK,
        loss_dice: dict[str, Any] = LOSS_DICE,
    ) -> None:
        super().__init__(init_cfg=[XAVIER, KAIMING])
        self.embed_dims = embed_dims
        self.feat_channels = tuple(feat_channels)
        self.attention = QueryAttentionMap(embed_dims, embed_dims, num_heads)
        self.network = MaskNetwork(
            embed_dims,
            num_heads,
            feat_channels,
            embed_dims if channels is None else channels,
            chunk_size,
            with_cp,
        )
        self.loss_mask = MMDET_MODELS.build(loss_mask)
        self.loss_dice = MMDET_MODELS.build(loss_dice)

    def forward(
        self,
        queries: Sequence[Tensor],
        memory: Tensor,
        mask: Tensor | None,
        src: Tensor,
        feats: Sequence[Tensor],
    ) -> list[Tensor]:
        """Compute the masks of some queries of every image.

        Args:
            queries: Outputs of the last decoder layer, of every image (Q, C), where
                the number of queries may differ.
            memory: Encoder output, (B, C, h, w).
            mask: True for padding, (B, h, w); None without any.
            src: Projected last feature map of the backbone, (B, C, h, w).
            feats: The other feature maps, fine to coarse, each (B, C', h', w').

        Returns:
            Mask logits of every image, (Q, H, W), of the size of the finest map.
        """
        masks = [None] * len(memory) if mask is None else mask
        images = zip(queries, memory, masks, src, *feats, strict=True)
        return [
            self.network(self.attention(query, tokens, padding), source, maps)
            for query, tokens, padding, source, *maps in images
        ]

    def loss(
        self, masks: Sequence[Tensor], targets: Sequence[Tensor], num_objects: float
    ) -> dict[str, Tensor]:
        """Compare the masks of matched queries with those of their objects.

        Args:
            masks: Mask logits of every image, (K, h, w), where K may differ.
            targets: Their binary targets, padded to the batch's size, (K, H, W).
            num_objects: Number of objects of the batch, matched or not, at least 1.

        Returns:
            ``loss_mask`` and ``loss_dice``; 0 without any object.
        """
        target = torch.cat(tuple(targets)).float()  # (K, H, W)
        logits = F.interpolate(
            torch.cat(tuple(masks))[:, None].float(),
            target.shape[-2:],
            mode='bilinear',
            align_corners=False,
        )
        logits, target = logits.flatten(1), target.flatten(1)  # (K, H * W)
        num_pixels = num_objects * target.shape[1]
        return dict(
            loss_mask=self.loss_mask(
                logits.flatten(), target.flatten(), avg_factor=num_pixels
            ),
            loss_dice=self.loss_dice(logits, target, avg_factor=num_objects),
        )


def _check(inputs: int, feat_channels: Sequence[int], channels: int) -> None:
    if len(feat_channels) != NUM_FEATS:
        raise ValueError(
            f'feat_channels must have the channels of {NUM_FEATS} feature maps, those '
            f'of stages 1 to 3; got {tuple(feat_channels)}.'
        )
    if channels < 1 or channels % CHANNELS_UNIT:
        raise ValueError(
            f'channels, by default embed_dims, must be a multiple of {CHANNELS_UNIT}: '
            f'they are halved four times, and norms have {NUM_GROUPS} groups; got '
            f'{channels}.'
        )
    if inputs % NUM_GROUPS:
        raise ValueError(
            f'embed_dims + num_heads must be a multiple of {NUM_GROUPS}, the groups of '
            f'the norms; got {inputs}.'
        )
