"""Start a training from the backbone of another model."""

import sys

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmsparse.checkpoint.state_dict import (
    read_weights,
    shapes_of,
    state_dict_mismatch,
)
from mmsparse.conversion.families import BACKBONE
from mmsparse.errors import UsageError


def start_from(cfg: Config, checkpoint: str) -> None:
    """Set in a config that the backbone starts from that of a checkpoint."""
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=checkpoint, prefix=BACKBONE
    )


def check_start(backbone: nn.Module, checkpoint: str) -> None:
    """Raise UsageError unless a backbone can start from that of another model.

    mmengine only logs missing parameters.

    Args:
        backbone: The backbone.
        checkpoint: File of the other model.

    Raises:
        UsageError: The file lacks parameters of the backbone, other than output norms,
            which depend on the model; or has them in another size.
    """
    shapes = {
        key: shape
        for key, shape in shapes_of(dict(backbone.named_parameters())).items()
        if not key.startswith('out_norms.')
    }
    weights = read_backbone(checkpoint)
    weights = {key: weights[key] for key in shapes.keys() & weights.keys()}
    if mismatch := state_dict_mismatch(weights, shapes):
        raise UsageError(
            f'{checkpoint} has no backbone that fits {type(backbone).__name__}; '
            f'{mismatch}'
        )


def read_backbone(checkpoint: str) -> dict[str, Tensor]:
    """Return the state dict of the backbone in the checkpoint of a whole model."""
    weights = read_weights(checkpoint)
    names = [name for name in weights if name.startswith(BACKBONE)]
    return {name.removeprefix(BACKBONE): weights[name] for name in names}


class BackboneStart(Hook):
    """Start a training from what fits of the backbone of another model.

    Parameters that have another name or shape there keep their random values. A
    training that is resumed has its own weights.

    Args:
        checkpoint: File of the other model.
        label: Name of the training for the message about what fits.

    Raises:
        UsageError: Nothing fits.
    """

    def __init__(self, checkpoint: str, label: str) -> None:
        self.checkpoint, self.label = checkpoint, label

    def before_train(self, runner: Runner) -> None:
        """Load the weights after the random ones, before the first iteration."""
        if runner.iter:
            return
        backbone = runner.model.backbone
        shapes = shapes_of(backbone.state_dict())
        weights = {
            name: tensor
            for name, tensor in read_backbone(self.checkpoint).items()
            if tensor.shape == shapes.get(name)
        }
        if not weights:
            raise UsageError(
                f'nothing in {self.checkpoint} fits {type(backbone).__name__}'
            )
        backbone.load_state_dict(weights, strict=False)
        print(
            f'{self.label.strip()}: {len(weights)} of {len(shapes)} tensors of the '
            f'backbone start from {self.checkpoint}',
            file=sys.stderr,
        )
