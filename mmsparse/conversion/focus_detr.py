"""Layout of detrex's Focus-DETR: that of its DINO with another encoder."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mmsparse.conversion import dino
from mmsparse.conversion.detectors import alias_in_decoder
from mmsparse.conversion.layout import Entry, Weights, count, size
from mmsparse.conversion.sparse_detr import SCORER, scorer

ENCODER = {
    'token_attn.attn': 'attentions.0.attn',
    'token_norm': 'norm2',
    **dino.ENCODER,
    'self_attn': 'attentions.1',
}


def _layout(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = dino.embed_dims(weights)
    steps = size(weights, r'transformer\.level_embeds') - 1
    return [
        *dino.layout(weights, widths, ENCODER),
        Entry('transformer.alpha', 'token_selector.alpha', (steps,)),
        *scorer(channels),
    ]


def _alias_of(key: str, weights: Weights) -> str:
    """Every layer of the encoder repeats the head that chooses queries, the last."""
    last = count(weights, r'class_embed\.(\d+)\.') - 1
    copies = r'^(enhance_MCSP_layerlist|transformer\.encoder\.enhance_MCSP)\.\d+\.'
    return alias_in_decoder(re.sub(copies, f'class_embed.{last}.', key), weights)


FOCUS_DETR = replace(
    dino.DINO,
    name='focus_detr',
    markers=(SCORER,),
    alias_of=_alias_of,
    layout=_layout,
    note=(
        'mmsparse.FocusDETR needs neck=dict(bias=True), and the temperature and offset '
        'of the training in positional_encoding, which are not in the weights: 20 and '
        '0 for ResNets after 24 or 36 epochs, else 10000 and -0.5.'
    ),
)
