"""Two processes on the CPU compute the same as one with all their images."""

import copy
import signal

import pytest
import torch
from forked import SERVER
from mmengine.model import convert_sync_batchnorm
from torch import distributed, multiprocessing, nn

from mmsparse.engine.cpu_ddp import (
    CPUDistributedDataParallel,
    CPUSyncBatchNorm,
    replace_sync_batchnorm,
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),  # one value per image, too few to normalize alone
        nn.BatchNorm2d(4, momentum=0.3),
    )


def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 6, 7) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)


def loss(out):
    return out.sin().sum(dim=(1, 2, 3)).mean()


def train_one_image(rank, address, queue):
    distributed.init_process_group('gloo', address, world_size=2, rank=rank)
    model = convert_sync_batchnorm(net(), 'torch')
    model = CPUDistributedDataParallel(module=model, broadcast_buffers=False)
    out = model(images()[rank : rank + 1])
    loss(out).backward()
    gradients = [x.grad.tolist() for x in model.parameters()]
    buffers = {name: x.tolist() for name, x in model.module.named_buffers()}
    model.eval()
    queue.put((rank, out.tolist(), gradients, buffers, model(images()).tolist()))
    signal.pause()  # until the parent has both; gloo may hang if one leaves first


@pytest.fixture(scope='module')
def of_two(tmp_path_factory):
    """Return the results of two processes with one image each."""
    address = f'file://{tmp_path_factory.mktemp("store")}/file'  # no port to collide
    queue = SERVER.SimpleQueue()
    arguments = (address, queue)
    children = multiprocessing.start_processes(
        train_one_image, arguments, nprocs=2, join=False, start_method='forkserver'
    )
    results = []
    try:
        while len(results) < 2:
            if queue.empty():
                children.join(timeout=0.1)  # raises the error of a child
            else:
                results.append(queue.get())
    finally:
        for process in children.processes:
            process.kill()
    return sorted(results)


@pytest.fixture(scope='module')
def of_one():
    model = net()
    out = model(images())
    loss(out).backward()
    return model, out


def test_outputs_are_normalized_over_both(of_two, of_one):
    out = torch.cat([torch.tensor(result[1]) for result in of_two])

    torch.testing.assert_close(out, of_one[1])


def test_gradients_are_those_of_both(of_two, of_one):
    for _, _, gradients, _, _ in of_two:
        for gradient, parameter in zip(gradients, of_one[0].parameters(), strict=True):
            torch.testing.assert_close(
                torch.tensor(gradient), parameter.grad, atol=1e-5, rtol=1e-4
            )


def test_running_statistics_are_those_of_both(of_two, of_one):
    for _, _, _, buffers, _ in of_two:
        for name, buffer in of_one[0].named_buffers():
            torch.testing.assert_close(torch.tensor(buffers[name]), buffer)


def test_evaluation_uses_the_running_statistics(of_two, of_one):
    model = copy.deepcopy(of_one[0]).eval()

    for *_, evaluated in of_two:
        torch.testing.assert_close(torch.tensor(evaluated), model(images()))


def test_one_process_needs_no_group(of_one):
    model = replace_sync_batchnorm(convert_sync_batchnorm(net(), 'torch'))

    out = model(images())

    assert sum(isinstance(m, CPUSyncBatchNorm) for m in model.modules()) == 2
    torch.testing.assert_close(out, of_one[1])
