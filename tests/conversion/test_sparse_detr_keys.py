import re
from functools import cache
from pathlib import Path

import pytest
import torch
from deformable_keys import CATEGORIES, official_key

from mmsparse.apis import build_model, read_config
from mmsparse.conversion.convert import convert
from mmsparse.conversion.families import recognize

CONFIGS = Path(__file__).parents[2] / 'configs' / 'sparse_detr'


@cache
def model():
    name = 'sparse-detr_r50_keep-30_8xb2-50e_coco.py'
    with torch.device('meta'):
        return build_model(read_config(str(CONFIGS / name)))


@pytest.fixture
def official():
    """Numbered weights of 91 categories with the official keys, and with aliases."""
    state = {}
    for number, (key, tensor) in enumerate(model().state_dict().items()):
        name, shape = official_key(key), tensor.shape
        if name.endswith('num_batches_tracked'):
            continue  # missing for frozen norms
        state[name] = torch.tensor(float(number)).expand(shape)
        if name.startswith('class_embed.'):
            rows = torch.arange(91.0) + 100 * int(name.split('.')[1])
            state[name] = rows.expand(*shape[1:], 91).T
    for name, tensor in list(state.items()):
        if found := re.match(r'(class|bbox)_embed\.(\d+)', name):
            state[f'transformer.decoder.{name}'] = tensor
            layer = int(found[2]) - 7
            if layer >= 0:
                alias = name.replace(found[0], f'{found[1]}_embed.{layer}')
                state[f'transformer.encoder.{alias}'] = tensor
    return state


def test_there_are_as_many_keys_as_in_the_release(official):
    """760, of which 265 of the backbone and 136 aliases."""
    own = [name for name in official if not name.startswith('backbone.')]
    aliases = [name for name in own if re.search(r'coder\.(class|bbox)_', name)]

    assert (len(official), len(own), len(aliases)) == (760, 495, 136)


def test_official_weights_become_those_of_sparse_detr(official):
    official['transformer.encoder.total_params'] = torch.zeros(1)

    found = convert({'model': official, 'epoch': 49})

    assert (found.family, found.arch) == ('sparse_detr', '4 levels, ResNet-50')
    assert 'keep_ratio' in found.note
    model().load_state_dict(found.state_dict, strict=True, assign=True)
    for key, tensor in found.state_dict.items():
        if '.cls_branches.' not in key:
            assert torch.equal(tensor, official[official_key(key)]), key


def test_all_heads_have_the_rows_of_the_80_categories(official):
    converted = convert(official).state_dict

    for head in range(12):
        rows = converted[f'bbox_head.cls_branches.{head}.bias']
        assert rows.tolist() == [100 * head + number for number in CATEGORIES]


@pytest.mark.parametrize(
    ('name', 'original'),
    [
        ('transformer.decoder.class_embed.2.bias', 'class_embed.2.bias'),
        ('transformer.encoder.bbox_embed.0.layers.0.bias', 'bbox_embed.7.layers.0.b'),
    ],
)
def test_an_alias_that_differs_is_a_warning(official, name, original):
    official[name] = official[name] + 1

    with pytest.warns(UserWarning, match=f'{name} should repeat {original}'):
        convert(official)


@pytest.mark.parametrize(
    'name',
    [
        'transformer.pos_trans.weight',
        'transformer.enc_mask_predictor.layer2.4.bias',
        'bbox_embed.11.layers.2.bias',
    ],
)
def test_a_missing_key_is_an_error(official, name):
    repeated = [key for key in official if key.endswith(name.partition('.')[2])]
    for key in repeated if name.startswith('bbox') else [name]:
        official.pop(key)

    with pytest.raises(ValueError, match='does not fit sparse_detr') as caught:
        convert(official)

    assert 'missing keys' in str(caught.value)


def test_an_unexpected_key_is_an_error(official):
    official['transformer.alpha'] = torch.zeros(3)

    with pytest.raises(ValueError, match=r'unexpected keys: transformer\.alpha'):
        convert(official)


def test_it_is_recognized_among_its_relatives(official):
    without_scorer = [name for name in official if 'enc_mask_predictor' not in name]

    assert 'checkpoint of sparse_detr' in recognize(official).text
    assert 'checkpoint of deformable_detr' in recognize(without_scorer).text
