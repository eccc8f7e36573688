import math

import pytest
import torch
from parity.generated import generate_state

DRAWN = [  # key, shape, and its first value from the first draw of the key's generator
    ('norm1.weight', (3,), 0.5 + 0.83202762),
    ('norm1.bias', (3,), 0.2 * 0.26711387),
    ('block1.0.attn.q.weight', (2, 3), -0.10237496 * 1.8 / math.sqrt(3)),
    ('block1.0.attn.kv1.weight', (2, 3), 0.71676198 * 1.8 / math.sqrt(3)),
    ('patch_embed1.conv.0.weight', (2, 3, 7, 7), -0.75696532 / math.sqrt(3 * 7 * 7)),
    ('patch_embed1.conv.1.running_mean', (3,), 0.3 * -0.1355827),
    ('patch_embed1.conv.1.running_var', (3,), 0.4 + 1.2 * 0.98193362),
    ('x.pos_embed', (1, 2, 3), -1.25914234 * 0.3 / math.sqrt(2 * 3)),
]


@pytest.mark.parametrize(('key', 'shape', 'first'), DRAWN, ids=lambda part: str(part))
def test_weights_are_seeded_by_their_key(key, shape, first):
    (weight,) = generate_state({key: torch.Size(shape)}, salt='sh0').values()

    assert weight.shape == shape
    assert weight.dtype == torch.float32
    assert weight.flatten()[0].item() == pytest.approx(first, rel=1e-6)


def test_weights_do_not_depend_on_their_neighbors():
    shapes = {key: torch.Size(shape) for key, shape, _ in DRAWN}

    alone = generate_state({'norm1.bias': shapes['norm1.bias']}, salt='sh0')

    assert torch.equal(
        generate_state(shapes, salt='sh0')['norm1.bias'], alone['norm1.bias']
    )


def test_the_salt_changes_every_weight():
    shapes = {key: torch.Size(shape) for key, shape, _ in DRAWN}

    one, other = (generate_state(shapes, salt) for salt in ('sh0', 'sh1'))

    assert not any(torch.equal(one[key], other[key]) for key in shapes)


def test_batchnorm_counts_no_batch():
    state = generate_state({'bn.num_batches_tracked': torch.Size([])}, salt='sh0')

    assert state['bn.num_batches_tracked'].item() == 0
    assert state['bn.num_batches_tracked'].dtype == torch.int64
