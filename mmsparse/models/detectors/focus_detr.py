"""Focus-DETR: DINO with an encoder that works on foreground tokens."""

import warnings
from typing import Any

import torch
from mmdet.models.detectors import DINO
from mmdet.structures import OptSampleList
from torch import Tensor

from mmsparse.models.detectors.dino_decoder import DinoDecoder
from mmsparse.models.detectors.focused_transformer import FocusedTransformer
from mmsparse.ops.tokens import gather_tokens
from mmsparse.registry import MODELS


@MODELS.register_module()
class FocusDETR(FocusedTransformer, DINO):
    """Focus-DETR, as a difference to mmdet's DINO.

    Paper: `Less is More: Focus Attention for Efficient DETR
    <https://arxiv.org/abs/2307.12612>`_. A scorer that is supervised by the boxes ranks
    the tokens of all levels; the encoder updates the best of them, fewer in each layer,
    and lets those most like objects attend to each other. With the defaults weights of
    the release in detrex give its outputs.

    Neck, denoising, decoder and losses are DINO's, at any width, number of levels and
    depth. The head is of type ``mmsparse.FocusDETRHead``.

    Args:
        **arguments: Those of :class:`FocusedTransformer` and of mmdet's DINO.

    Raises:
        ValueError: An argument is out of range or does not fit another.
    """

    def __init__(self, **arguments: Any) -> None:
        self._told_few_tokens = False
        super().__init__(**arguments)

    def _init_layers(self) -> None:
        decoder = self.decoder
        super()._init_layers()
        self.decoder = DinoDecoder(**decoder)

    def pre_decoder(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        spatial_shapes: Tensor,
        proposals: Tensor,
        foreground_logits: Tensor,
        level_sizes: tuple[tuple[int, int], ...],
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Choose the tokens where the decoder's queries start, and add noised boxes.

        What DINO's own step does, but the head for boxes runs on the chosen tokens
        alone, and fewer tokens than queries are no error.

        Args:
            memory: What the encoder returned, (B, N, C).
            memory_mask: True for padding, (B, N); not used, since ``proposals`` tell.
            spatial_shapes: Height and width of every level, (levels, 2); not used.
            proposals: Logits of a box at every token, (B, N, 4), infinite where there
                is none.
            foreground_logits: What the token selector returned, (B, N).
            level_sizes: ``spatial_shapes`` as numbers.
            batch_data_samples: Pictures with their boxes, while training.

        Returns:
            What the decoder and what the head need.
        """
        tokens = self.project_tokens(memory, proposals[..., 0].isinf())
        class_logits = self.bbox_head.cls_branches[-1](tokens)
        num_queries = self._num_queries(memory.shape[1])
        rows = class_logits.amax(-1).topk(num_queries).indices
        boxes = self.bbox_head.reg_branches[-1](gather_tokens(tokens, rows))
        boxes = boxes + gather_tokens(proposals, rows)  # (B, num_queries, 4)

        query = self.query_embedding.weight[:num_queries]
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
        """Run the decoder.

        Args:
            memory: What the encoder returned, (B, N, C).
            memory_mask: True for padding, (B, N); None for no padding.
            dn_mask: True where a query does not see another, (Q, Q); None for nowhere.
            **inputs: The others of :meth:`DinoDecoder.forward`.

        Returns:
            Hidden states and references of all layers.
        """
        states, references = self.decoder(
            value=memory,
            key_padding_mask=memory_mask,
            self_attn_mask=dn_mask,
            reg_branches=self.bbox_head.reg_branches,
            **inputs,
        )
        if self.training:
            # Without a box in the batch this table would have no gradient, and
            # distributed training would wait for one.
            unused = 0 * self.dn_query_generator.label_embedding.weight[0, 0]
            states = states + unused
        return dict(hidden_states=states, references=list(references))

    def _num_queries(self, num_tokens: int) -> int:
        if num_tokens < self.num_queries and not self._told_few_tokens:
            self._told_few_tokens = True
            warnings.warn(
                f'Pictures of {num_tokens} tokens are too small for num_queries='
                f'{self.num_queries}; the decoder starts from all their tokens.',
                stacklevel=2,
            )
        return min(self.num_queries, num_tokens)
