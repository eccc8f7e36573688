"""Watching which tokens a Focus-DETR keeps; nothing in the model knows of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmsparse.ops.tokens import kept_by_layer
from mmsparse.registry import HOOKS


class KeptTokens(NamedTuple):
    """The tokens of a batch, and which of them the layers of the encoder keep.

    Args:
        centers: Center (x, y) of every token, from 0 to 1 over its picture and beyond
            in the padding, (B, N, 2).
        kept: True for tokens that the layer updates, (B, layers, N).
        level_sizes: Height and width of every level, fine to coarse.
    """

    centers: Tensor
    kept: Tensor
    level_sizes: tuple[tuple[int, int], ...]


def record_kept_tokens(
    detector: nn.Module, note: Callable[[KeptTokens], Any]
) -> RemovableHandle:
    """Be told which tokens a detector keeps, whenever its encoder runs.

    Args:
        detector: A Focus-DETR, or another detector on foreground tokens.
        note: Called with the tokens of each batch, before the encoder runs.

    Returns:
        A handle that ends this by ``remove()``.

    Raises:
        ValueError: The detector selects no tokens.
    """
    if not hasattr(detector, 'token_selector'):
        raise ValueError(
            'The detector must select tokens, as mmsparse.FocusDETR does; got '
            f'{type(detector).__name__}.'
        )

    def tell(encoder: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        centers = inputs['centers']
        kept = kept_by_layer(inputs['selection'], centers.shape[1])
        note(KeptTokens(centers, kept, inputs['level_sizes']))

    return detector.encoder.register_forward_pre_hook(tell, with_kwargs=True)


@HOOKS.register_module()
class KeptTokensHook(Hook):
    """Write into each sample of a validation or test which tokens were kept.

    Samples get ``token_centers``, (N, 2), and ``kept_tokens``, (layers, N), as
    :class:`KeptTokens` has them. :class:`mmsparse.evaluation.KeptTokenRecall` needs
    them.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def before_val(self, runner: Runner) -> None:
        """Begin to watch.

        Args:
            runner: Has the detector.

        Raises:
            ValueError: The detector selects no tokens.
        """
        model = runner.model
        detector = model.module if is_model_wrapper(model) else model
        seen: list[KeptTokens] = []

        def write(detector: nn.Module, args: tuple, samples: Any) -> None:
            _write(samples, seen.pop())

        self._handles = [
            record_kept_tokens(detector, seen.append),
            detector.register_forward_hook(write),
        ]

    def after_val(self, runner: Runner) -> None:
        """Watch no longer.

        Args:
            runner: Not used.
        """
        while self._handles:
            self._handles.pop().remove()

    before_test = before_val
    after_test = after_val


def _write(samples: list[BaseDataElement], tokens: KeptTokens) -> None:
    for sample, centers, kept in zip(samples, tokens.centers, tokens.kept, strict=True):
        sample.token_centers = centers
        sample.kept_tokens = kept
