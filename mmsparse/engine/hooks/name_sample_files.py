"""Name the files of a sample in errors of data loading."""

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmsparse.datasets.errors import name_sample_files
from mmsparse.registry import HOOKS


@HOOKS.register_module()
class NameSampleFiles(Hook):
    """Name the files and the transform in errors of data loading.

    Datasets also check that images have the size of their annotations and, in mmseg,
    that label maps have the size of their images and labels of their classes.
    """

    def before_train(self, runner: Runner) -> None:
        """Wrap the training data, also for workers that have been started."""
        loop = runner.train_loop
        if not isinstance(loop.dataloader, DataLoader):  # vis_scheduler of mmpretrain
            return
        name_sample_files(loop.dataloader.dataset)
        if isinstance(loop, IterBasedTrainLoop) and loop.dataloader.num_workers:
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)

    def before_val(self, runner: Runner) -> None:
        """Wrap the validation data."""
        name_sample_files(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Wrap the test data."""
        name_sample_files(runner.test_dataloader.dataset)
