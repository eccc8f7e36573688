"""No forward pass on a GPU waits for the GPU; tensors without data stand for it."""

import pytest
import torch
from counted import fake, tensors
from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependent
from torch._subclasses.fake_tensor import DynamicOutputShapeException as DynamicShape
from torch.utils._python_dispatch import TorchDispatchMode

from mmsparse import create_model


class Transfers(TorchDispatchMode):
    """Record operations between CPU and GPU; reading a number raises by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tensors(args, kwargs, out)}
        if len(devices) > 1:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize('size', [(224, 224), (97, 130)], ids=str)
@pytest.mark.parametrize(
    'name', ['biformer-nano', 'dat-tiny', 'dat-nano', 'shunted-nano']
)
def test_a_model_does_not_wait_for_the_gpu(name, size):
    model = create_model(name)
    with fake(model, 'cuda'), torch.backends.cudnn.flags(enabled=False):
        image = torch.empty(2, 3, *size, device='cuda')
        with Transfers() as transfers:
            out = model(image)

    assert out.device.type == 'cuda'
    assert transfers.found == []


@pytest.mark.parametrize(
    'transfer',
    [lambda x: x.new_tensor([1.0]), lambda x: x.cpu(), lambda x: torch.rand(3).to(x)],
)
def test_transfers_are_found(transfer):
    with fake(torch.nn.Module()):
        x = torch.empty(3, device='cuda')
        with Transfers() as transfers:
            transfer(x)

    assert transfers.found


@pytest.mark.parametrize('read', [torch.Tensor.item, bool, torch.nonzero])
def test_reading_a_number_is_found(read):
    with fake(torch.nn.Module()), pytest.raises((DataDependent, DynamicShape)):
        read(torch.empty(1, device='cuda'))
