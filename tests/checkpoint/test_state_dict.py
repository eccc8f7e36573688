import hashlib
import struct

import pytest
import torch
from torch import nn

from mmsparse.checkpoint.state_dict import (
    SHOWN_KEYS,
    join_keys,
    load_state_dict,
    shapes_of,
    state_dict_mismatch,
    tensors_sha256,
)


class Resizing(nn.Linear):
    """Takes weights of any number of rows, or none at all."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight = state_dict[f'{prefix}weight']
        if len(weight) == 7:
            raise RuntimeError('seven rows')
        state_dict[f'{prefix}weight'] = weight[:1].expand_as(self.weight)
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_equal_keys_and_shapes_are_no_mismatch():
    weights = nn.Linear(2, 3).state_dict()

    mismatch = state_dict_mismatch(weights, shapes_of(weights))

    assert not mismatch
    assert str(mismatch) == ''


def test_a_mismatch_lists_keys_in_the_words_of_torch():
    weights = dict(a=torch.ones(2), b=torch.ones(2, 3), extra=torch.ones(1))

    mismatch = state_dict_mismatch(weights, dict(z=(1,), a=(2,), b=(3, 2), c=()))

    assert len(mismatch) == 4
    assert str(mismatch) == (
        'missing keys: z, c; unexpected keys: extra; '
        'size mismatch: b (2, 3) instead of (3, 2)'
    )


def test_a_mismatch_has_the_names_of_the_file():
    weights = dict(a=torch.ones(2), b=torch.ones(2))

    mismatch = state_dict_mismatch(weights, dict(a=(1,), c=()), name=str.upper)

    assert str(mismatch) == (
        'missing keys: C; unexpected keys: B; size mismatch: A (2,) instead of (1,)'
    )


def test_counters_of_batch_norm_may_be_missing():
    model = nn.BatchNorm2d(2)
    weights = {k: x for k, x in model.state_dict().items() if 'num' not in k}

    assert not state_dict_mismatch(weights, shapes_of(model.state_dict()))
    assert not load_state_dict(model, weights)
    weights['num_batches_tracked'] = torch.ones(2)
    assert state_dict_mismatch(weights, shapes_of(model.state_dict()))


def test_the_first_of_many_keys_are_shown():
    keys = [str(i) for i in range(SHOWN_KEYS + 3)]

    assert join_keys(keys[:SHOWN_KEYS]) == ', '.join(keys[:SHOWN_KEYS])
    assert join_keys(keys).endswith(f', {SHOWN_KEYS - 1} and 3 more')


def test_a_model_may_resize_what_it_loads():
    model, weights = Resizing(2, 3), nn.Linear(2, 5).state_dict()
    weights['bias'] = weights['bias'][:3]

    assert state_dict_mismatch(weights, shapes_of(model.state_dict()))
    assert not load_state_dict(model, weights)
    assert torch.equal(model.weight[2], weights['weight'][0])


@pytest.mark.parametrize('allow', [False, True], ids=['strict', 'unexpected allowed'])
def test_loading_returns_the_mismatch(allow):
    weights = dict(weight=torch.ones(4, 2), extra=torch.ones(1))

    mismatch = load_state_dict(nn.Linear(2, 3), weights, allow_unexpected=allow)

    assert mismatch.missing == ['bias']
    assert mismatch.unexpected == ([] if allow else ['extra'])
    assert mismatch.size_mismatch == ['weight (4, 2) instead of (3, 2)']


def test_a_mismatch_leaves_out_what_the_model_resizes():
    model = nn.ModuleDict(dict(one=Resizing(2, 3), other=nn.Linear(2, 3)))
    weights = {
        'one.weight': torch.ones(1, 2),
        'one.bias': torch.ones(3),
        'other.weight': torch.ones(1, 2),
    }

    mismatch = load_state_dict(model, weights)

    assert mismatch.missing == ['other.bias']
    assert mismatch.size_mismatch == ['other.weight (1, 2) instead of (3, 2)']
    del weights['other.weight']
    assert not load_state_dict(model, weights).size_mismatch


def test_loading_raises_other_errors_of_the_model():
    model = Resizing(2, 7)

    with pytest.raises(RuntimeError, match='seven rows'):
        load_state_dict(model, model.state_dict())


def test_the_hash_of_tensors_is_that_of_names_types_shapes_and_elements():
    weights = {
        'b': torch.tensor([[1.5, -2.0]]),
        'a': torch.tensor(7, dtype=torch.int64),
    }

    expected = hashlib.sha256(
        b'["a", "int64", []]\n'
        + struct.pack('<q', 7)
        + b'["b", "float32", [1, 2]]\n'
        + struct.pack('<2f', 1.5, -2.0)
    )

    assert tensors_sha256(weights) == expected.hexdigest()


def test_the_hash_of_tensors_depends_on_what_they_are_alone():
    weights = {
        'w': torch.arange(6.0).reshape(2, 3),
        'x': torch.ones(2, dtype=torch.bfloat16),
        'y': torch.zeros(0, 3, dtype=torch.bool),
    }
    views = {key: x.T.contiguous().T for key, x in reversed(weights.items())}

    assert tensors_sha256(views) == tensors_sha256(weights)
    for key, other in (
        ('w', torch.arange(6.0).reshape(3, 2)),
        ('w', torch.arange(1.0, 7).reshape(2, 3)),
        ('x', torch.ones(2, dtype=torch.float16)),
        ('z', torch.ones(1)),
    ):
        assert tensors_sha256({**weights, key: other}) != tensors_sha256(weights), key
