"""Layout of detrex's Focus-DETR: that of its DINO with another encoder."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mmsparse.conversion import dino
from mmsparse.conversion.detectors import alias_in_decoder
from mmsparse.conversion.layout import Entry, Weights, affine, count, size

ENCODER = {
    'token_attn.attn': 'attentions.0.attn',
    'token_norm': 'norm2',
    **dino.ENCODER,
    'self_attn': 'attentions.1',
}


def _layout(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = dino.embed_dims(weights)
    steps = size(weights, r'transformer\.level_embeds') - 1
    half, quarter = channels // 2, channels // 4
    shapes = {
        'layer1.0': (channels,),
        'layer1.1': (channels, channels),
        'layer2.0': (half, channels),
        'layer2.2': (quarter, half),
        'layer2.4': (1, quarter),
    }
    scorer = 'transformer.enc_mask_predictor'
    return [
        *dino.layout(weights, widths, ENCODER),
        Entry('transformer.alpha', 'token_selector.alpha', (steps,)),
        *(
            entry
            for part, shape in shapes.items()
            for entry in affine(f'{scorer}.{part}', f'token_selector.{part}', shape)
        ),
    ]


def _alias_of(key: str, weights: Weights) -> str:
    """Every layer of the encoder repeats the head that chooses queries, the last."""
    last = count(weights, r'class_embed\.(\d+)\.') - 1
    copies = r'^(enhance_MCSP_layerlist|transformer\.encoder\.enhance_MCSP)\.\d+\.'
    return alias_in_decoder(re.sub(copies, f'class_embed.{last}.', key), weights)


FOCUS_DETR = replace(
    dino.DINO,
    name='focus_detr',
    marker=r'transformer\.enc_mask_predictor\.',
    alias_of=_alias_of,
    layout=_layout,
    note=(
        'mmsparse.FocusDETR needs neck=dict(bias=True), and the temperature and offset '
        'of the training in positional_encoding, which are not in the weights: 20 and '
        '0 for ResNets after 24 or 36 epochs, else 10000 and -0.5.'
    ),
)
