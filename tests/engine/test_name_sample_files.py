"""Errors of data loading name the file in every loop of a runner."""

from types import SimpleNamespace

import pytest
from mmengine.dataset import Compose
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset

from mmsparse.datasets.errors import SampleError


class Broken(Dataset):
    """A dataset of two images that cannot be decoded."""

    def __init__(self):
        self.pipeline = Compose([self.fail])

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return self.pipeline(dict(img_path=f'{i}.jpg'))

    def fail(self, data):
        raise OSError('truncated')


@pytest.fixture
def hook():
    return HOOKS.build(dict(type='mmsparse.NameSampleFiles'))


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('loop_class', [EpochBasedTrainLoop, IterBasedTrainLoop])
def test_training_names_the_file(hook, loop_class, workers):
    loop = loop_class.__new__(loop_class)
    loop.dataloader = DataLoader(Broken(), num_workers=workers)
    loop.dataloader_iterator = _InfiniteDataloaderIterator(loop.dataloader)

    hook.before_train(SimpleNamespace(train_loop=loop))

    with pytest.raises(SampleError, match=r'0\.jpg: .*OSError: truncated'):
        if loop_class is EpochBasedTrainLoop:
            next(iter(loop.dataloader))
        else:
            next(loop.dataloader_iterator)


@pytest.mark.parametrize('stage', ['val', 'test'])
def test_validation_and_test_name_the_file(hook, stage):
    loader = DataLoader(Broken())

    getattr(hook, f'before_{stage}')(SimpleNamespace(**{f'{stage}_dataloader': loader}))

    with pytest.raises(SampleError, match=r'0\.jpg: '):
        next(iter(loader))
