"""Data-parallel training, where each process waits for the gradients of the other."""

from datetime import timedelta

import pytest
import torch
from forked import SERVER
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from tiny_detectors import build_detector, make_images
from torch import distributed

BOXES = {  # in every image of each process
    'boxes everywhere': [3, 1],
    'no boxes in one process': [2, 0],
    'no boxes': [0, 0],
}
STEPS = 2


def train(rank, folder):
    """Train on images with ``BOXES[...][rank]`` boxes; store the weights."""
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / 'store'), 2)
    distributed.init_process_group(
        'gloo', store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for name, boxes in BOXES.items():
        model = MMDistributedDataParallel(
            build_detector().train(), find_unused_parameters=False
        )
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        torch.manual_seed(rank)
        for _ in range(STEPS):
            inputs, samples = make_images([(96, 128), (64, 120)], boxes[rank])
            model.train_step(dict(inputs=list(inputs), data_samples=samples), optimizer)
        torch.save(model.module.state_dict(), folder / f'{name}-{rank}.pth')
    distributed.destroy_process_group()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder with the weights of two processes."""
    folder = tmp_path_factory.mktemp('distributed')
    # Forks of the server, since new processes import for longer than they train.
    ranks = [SERVER.Process(target=train, args=(rank, folder)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize('name', BOXES)
def test_two_processes_train_and_keep_equal_weights(name, trained):
    one, other = (torch.load(trained / f'{name}-{rank}.pth') for rank in (0, 1))

    start = build_detector().state_dict()
    for key, tensor in one.items():
        assert tensor.isfinite().all(), key
        torch.testing.assert_close(other[key], tensor)
    selector = 'token_selector.layer2.4.bias'
    assert not torch.equal(start[selector], one[selector])
