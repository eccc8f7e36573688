"""Training in two processes, which wait for each other's gradients."""

from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as processes
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from tiny_detectors import build_detector, make_pictures
from torch import distributed

BOXES = {'boxes everywhere': [3, 1], 'none on one': [2, 0], 'none at all': [0, 0]}
STEPS = 2


def train(rank, boxes, folder):
    """Train on pictures with ``boxes[rank]`` boxes, and store the weights."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / 'store'), 2)
    distributed.init_process_group(
        'gloo', store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    model = MMDistributedDataParallel(
        build_detector().train(), find_unused_parameters=False
    )
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    torch.manual_seed(rank)
    for _ in range(STEPS):
        inputs, samples = make_pictures([(96, 128), (64, 120)], boxes[rank])
        model.train_step(dict(inputs=list(inputs), data_samples=samples), optimizer)
    torch.save(model.module.state_dict(), folder / f'{rank}.pth')
    distributed.destroy_process_group()


@pytest.mark.parametrize('boxes', BOXES.values(), ids=BOXES)
def test_two_processes_train_and_stay_the_same(boxes, tmp_path):
    context = processes.get_context('spawn')
    ranks = [
        context.Process(target=train, args=(rank, boxes, tmp_path)) for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)

    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, other = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    start = build_detector().state_dict()
    for name, tensor in one.items():
        assert tensor.isfinite().all(), name
        torch.testing.assert_close(other[name], tensor)
    trained = 'token_selector.layer2.4.bias'
    assert not torch.equal(start[trained], one[trained])
