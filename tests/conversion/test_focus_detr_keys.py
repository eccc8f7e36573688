import re
from functools import cache
from pathlib import Path

import pytest
import torch
from detrex import detrex_key

from mmsparse.apis import build_model, read_config
from mmsparse.conversion.convert import convert

CONFIGS = Path(__file__).parents[2] / 'configs' / 'focus_detr'


@cache
def model():
    with torch.device('meta'):
        return build_model(
            read_config(str(CONFIGS / 'focus-detr_r50_8xb2-12e_coco.py'))
        )


@pytest.fixture
def official():
    """Numbered weights with the keys of detrex, and with its aliases."""
    state = {
        detrex_key(key): torch.tensor(float(number)).expand(tensor.shape)
        for number, (key, tensor) in enumerate(model().state_dict().items())
        if not key.endswith('num_batches_tracked')  # missing for frozen norms
    }
    for name, tensor in list(state.items()):
        if name.startswith(('class_embed.', 'bbox_embed.')):
            state[f'transformer.decoder.{name}'] = tensor
        if name.startswith('class_embed.6.'):
            for i in range(6):
                part = name.replace('class_embed.6', str(i))
                state[f'enhance_MCSP_layerlist.{part}'] = tensor
                state[f'transformer.encoder.enhance_MCSP.{part}'] = tensor
    return state


def test_there_are_as_many_keys_as_in_the_release(official):
    """360 without the backbone, and 80 aliases."""
    own = [name for name in official if not name.startswith('backbone.')]
    aliases = [
        name for name in own if re.search(r'MCSP|decoder\.(cls|class|bbox)_', name)
    ]

    assert len(aliases) == 80
    assert len(own) - len(aliases) == 360


def test_the_weights_of_detrex_become_those_of_focus_detr(official):
    found = convert({'model': official, 'iteration': 89_999})

    assert (found.family, found.arch) == ('focus_detr', '4 levels, ResNet-50')
    assert 'neck=dict(bias=True)' in found.note
    model().load_state_dict(found.state_dict, strict=True, assign=True)
    for key, tensor in found.state_dict.items():
        assert torch.equal(tensor, official[detrex_key(key)]), key


def test_an_alias_that_differs_is_a_warning(official):
    name = 'enhance_MCSP_layerlist.2.bias'
    official[name] = official[name] + 1

    with pytest.warns(UserWarning, match=f'{name} should repeat class_embed.6.bias'):
        convert(official)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('transformer.alpha', 'missing keys: transformer.alpha'),
        (
            'transformer.enc_mask_predictor.layer2.4.bias',
            r'missing keys: .*layer2\.4\.bias',
        ),
        (
            'transformer.encoder.layers.3.norm2.weight',
            r'missing keys: .*3\.norm2\.weight',
        ),
    ],
)
def test_a_missing_key_is_an_error(official, name, message):
    del official[name]

    with pytest.raises(ValueError, match=message):
        convert(official)


def test_an_unexpected_key_is_an_error(official):
    official['transformer.encoder.layers.0.norm3.weight'] = torch.zeros(256)

    with pytest.raises(ValueError, match=r'unexpected keys: .*norm3\.weight'):
        convert(official)
