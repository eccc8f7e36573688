"""Let the detectors of mmdet run where mmcv's CUDA operators are not compiled."""

import sys

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsparse.registry import HOOKS


@HOOKS.register_module()
class ReplaceOperators(Hook):
    """Apply :func:`~mmsparse.models.detectors.replace_operators` to the model.

    Nothing happens to models without modules of mmdet.
    """

    def before_run(self, runner: Runner) -> None:
        """Exchange modules before training, validation or test."""
        if 'mmdet' in sys.modules:
            from mmsparse.models.detectors import replace_operators

            replace_operators(runner.model)
