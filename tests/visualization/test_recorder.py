import pytest
import torch
from torch import nn

from mmsparse.models import BiFormer
from mmsparse.visualization import record


def hooks(model):
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    ]


def test_hooks_are_removed_after_the_context():
    backbone = BiFormer('nano', regions_per_side=4).eval()
    assert not hooks(backbone)

    with record(backbone):
        assert hooks(backbone)

    assert not hooks(backbone)


def test_hooks_are_removed_when_the_model_raises():
    backbone = BiFormer('nano', regions_per_side=4).eval()

    with pytest.raises(ValueError, match='x must be'), record(backbone):
        backbone(torch.randn(1, 1, 64, 64))

    assert not hooks(backbone)


def test_the_inputs_of_the_last_batch_are_recorded():
    backbone = BiFormer('nano', regions_per_side=4, out_indices=(2,)).eval()
    x = torch.randn(2, 3, 100, 64)

    with record(backbone) as recording, torch.no_grad():
        backbone(torch.randn(1, 3, 64, 64))
        backbone(x)

    assert torch.equal(recording.inputs, x)
    titles = [layer.title for layer in recording.layers]
    assert titles[:3] == ['stage 1, block 1', 'stage 1, block 2', 'stage 2, block 1']
    assert [layer.stride for layer in recording.layers] == [4, 4, 8, 8, 16, 16]
    assert recording.layers[4].x.shape == (2, 128, 7, 4)
    assert not recording.layers[4].x.requires_grad


def test_a_point_selects_the_query_of_its_cell():
    backbone = BiFormer('nano', regions_per_side=4, out_indices=(1,)).eval()
    with record(backbone) as recording, torch.no_grad():
        backbone(torch.randn(1, 3, 60, 100))

    last = recording.layers[-1]  # 8 x 13 cells of 8 pixels

    assert last.query_at(torch.tensor([0.0, 0.0])) == 0
    assert last.query_at(torch.tensor([16.0, 8.0])) == 13 + 2
    assert last.query_at(torch.tensor([15.9, 7.9])) == 1
    assert last.query_at(torch.tensor([99.9, 59.9])) == 7 * 13 + 12


def test_a_model_without_supported_layers_raises():
    message = 'Sequential has none of: attention layers .*BiLevelRouting.*; a token'

    with pytest.raises(ValueError, match=message), record(nn.Sequential()):
        pass


def test_recording_does_not_change_the_output():
    backbone = BiFormer('nano', regions_per_side=4).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (expected,) = backbone(x)
        with record(backbone):
            (actual,) = backbone(x)

    assert torch.equal(actual, expected)
