"""Explain errors of training and evaluation by the setting to change."""

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmsparse.engine.explanations import explain
from mmsparse.engine.hooks.stop_at_nan import NotFiniteError
from mmsparse.errors import UsageError
from mmsparse.registry import HOOKS


@HOOKS.register_module()
class ExplainErrors(Hook):
    """Explain errors of training and evaluation by the setting to change.

    The errors are those of :data:`mmsparse.engine.explanations.EXPLANATIONS`; they
    become a UsageError. Others pass.
    """

    def before_run(self, runner: Runner) -> None:
        """Wrap the loops that have been built."""
        for stage in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{stage}_loop')  # the public one would build it
            if isinstance(loop, BaseLoop):
                loop.run = _explained(loop.run, stage)


def _explained(run: Callable[[], Any], stage: str) -> Callable[[], Any]:
    def explained() -> Any:
        try:
            return run()
        except (UsageError, NotFiniteError):
            raise
        except Exception as error:
            explanation = explain(error, stage)
            if not explanation:
                raise
            raise UsageError(explanation) from error

    return explained
