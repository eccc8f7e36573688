"""Runner that checks a config and its data before it builds or trains anything."""

from typing import Any

from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmsparse.apis.config import find_host
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.checks import check_config, check_data
from mmsparse.datasets.errors import blame_annotations
from mmsparse.engine.memory import keep_freed_memory
from mmsparse.errors import UsageError, config_errors
from mmsparse.registry import RUNNERS

TRAINING = ('train_dataloader', 'val_dataloader')


@RUNNERS.register_module()
class CheckedRunner(Runner):
    """MMEngine's runner, which first checks the config, and the data that it uses.

    A mistake raises UsageError, in one line. A config with a ``strategy`` (FSDP,
    DeepSpeed) gets MMEngine's FlexibleRunner, after the same checks. The process keeps
    the memory that it frees, see :func:`keep_freed_memory`.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> Runner | FlexibleRunner:
        """Check a config of mmdet, mmseg or mmpretrain, and build its runner."""
        register_safe_loader()
        keep_freed_memory()
        host = find_host(cfg)
        strategy = 'strategy' in cfg
        if host is not None:
            check_config(cfg, host, training=strategy)
        if strategy and host is not None:
            check_data(cfg, host, TRAINING)
        if strategy:
            with config_errors():
                return FlexibleRunner.from_cfg(cfg)
        with config_errors():
            return super().from_cfg(cfg)

    def train(self) -> nn.Module:
        """Check the settings of the training and its data, then train."""
        if host := find_host(self.cfg):
            check_config(self.cfg, host)
        self._check_data(*TRAINING)
        return super().train()

    def val(self) -> dict[str, Any]:
        """Check the data of the validation, then validate."""
        self._check_data('val_dataloader')
        return super().val()

    def test(self) -> dict[str, Any]:
        """Check the test data, then test."""
        self._check_data('test_dataloader')
        return super().test()

    def _check_data(self, *loaders: str) -> None:
        host = find_host(self.cfg)
        if host is not None:
            for note in check_data(self.cfg, host, loaders):
                self.logger.warning(note)

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a data loader; an error in an annotation file names the file."""
        with blame_annotations(dataloader):
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        _check_batches(loader)
        return loader

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        """Build an evaluator; an error in an annotation file names the file."""
        with blame_annotations(evaluator):
            return super().build_evaluator(evaluator)


def _check_batches(loader: DataLoader) -> None:
    """Raise UsageError for a data loader without a batch, unless it may repeat."""
    sampler = loader.batch_sampler
    if isinstance(getattr(sampler, 'sampler', None), DefaultSampler) and not len(
        loader
    ):
        size, drop_last = sampler.batch_size, getattr(sampler, 'drop_last', False)
        raise UsageError(
            f'A data loader has no batch: {len(loader.dataset)} images with '
            f'batch_size={size} and drop_last={drop_last}; lower batch_size or add '
            f'images.'
        )
