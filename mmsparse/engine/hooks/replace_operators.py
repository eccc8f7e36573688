"""Let the detectors of mmdet run where mmcv's operators are not compiled."""

import sys

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsparse.mmcv_ext import lacks_operators
from mmsparse.registry import HOOKS

WITHOUT_OPERATORS = (
    "mmcv's operators are not compiled: mmsparse computes deformable attention, torch "
    'the focal loss, torchvision NMS and RoIAlign; all others raise an error.'
)


@HOOKS.register_module()
class ReplaceOperators(Hook):
    """Apply :func:`~mmsparse.models.detectors.replace_operators` to the model.

    Nothing happens to models without modules of mmdet. Without mmcv's compiled
    operators, a line in the log says what computes instead.
    """

    def before_run(self, runner: Runner) -> None:
        """Exchange modules before training, validation or test."""
        if 'mmdet' in sys.modules:
            from mmsparse.models.detectors import replace_operators

            replace_operators(runner.model)
        if lacks_operators():
            runner.logger.warning(WITHOUT_OPERATORS)
