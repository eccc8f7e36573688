"""Record which tokens a Focus-DETR or Sparse DETR keeps, by hooks on the model."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmsparse.evaluation.kept_token_recall import KeptTokenRecall
from mmsparse.ops.tokens import kept_by_layer
from mmsparse.registry import HOOKS


class KeptTokens(NamedTuple):
    """Tokens of a batch, and those that each encoder layer keeps.

    Centers (x, y) are 0 to 1 over the image of the token, and above 1 in its padding.
    Sparse DETR has one entry for all layers.
    """

    centers: Tensor  # (B, N, 2)
    kept: Tensor  # whether a layer updates a token, (B, layers, N)
    level_sizes: tuple[tuple[int, int], ...]  # height and width, fine to coarse


def record_kept_tokens(
    detector: nn.Module, callback: Callable[[KeptTokens], Any]
) -> RemovableHandle:
    """Call a function with the kept tokens of every batch, before the encoder runs.

    ``remove()`` of the result ends the recording. A detector that selects no tokens, as
    those with a ``token_selector`` do, raises ValueError.
    """
    if not hasattr(detector, 'token_selector'):
        raise ValueError(
            'The detector must select tokens, as mmsparse.FocusDETR does; got '
            f'{type(detector).__name__}.'
        )

    def record(encoder: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        centers = inputs['centers']
        kept = kept_by_layer(inputs['selection'], centers.shape[1])
        callback(KeptTokens(centers, kept, inputs['level_sizes']))

    return detector.encoder.register_forward_pre_hook(record, with_kwargs=True)


@HOOKS.register_module()
class KeptTokensHook(Hook):
    """Add the kept tokens to each sample of a validation or test.

    Samples get ``token_centers``, (N, 2), and ``kept_tokens``, (layers, N), see
    :class:`KeptTokens`; :class:`mmsparse.evaluation.KeptTokenRecall` needs them. A test
    with augmented images, each of which keeps others, has no such recall.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def before_val(self, runner: Runner) -> None:
        """Start recording; raise ValueError if the detector selects no tokens."""
        detector = _unwrapped(runner.model)
        recorded: list[KeptTokens] = []

        def add_to_samples(detector: nn.Module, args: tuple, samples: Any) -> None:
            centers, kept, _ = recorded.pop()
            for sample, *tokens in zip(samples, centers, kept, strict=True):
                sample.token_centers, sample.kept_tokens = tokens

        self._handles = [
            record_kept_tokens(detector, recorded.append),
            detector.register_forward_hook(add_to_samples),
        ]

    def after_val(self, runner: Runner) -> None:
        """Stop recording."""
        while self._handles:
            self._handles.pop().remove()

    def before_test(self, runner: Runner) -> None:
        """Start recording as in a validation, unless images are augmented."""
        if isinstance(_unwrapped(runner.model), BaseTTAModel):
            _remove_recall(runner)
        else:
            self.before_val(runner)

    after_test = after_val


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _remove_recall(runner: Runner) -> None:
    evaluator = runner.test_loop.evaluator
    evaluator.metrics = [
        metric
        for metric in evaluator.metrics
        if not isinstance(metric, KeptTokenRecall)
    ]
    runner.logger.info('No recall of kept tokens: each augmented image keeps others.')
