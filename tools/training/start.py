"""Start a training from the backbone of another model."""

from mmengine.config import Config
from torch import nn

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
    weights = {
        key: tensor
        for name, tensor in read_weights(checkpoint).items()
        if (key := name.removeprefix(BACKBONE)) in shapes and name != key
    }
    if mismatch := state_dict_mismatch(weights, shapes):
        raise UsageError(
            f'{checkpoint} has no backbone that fits {type(backbone).__name__}; '
            f'{mismatch}'
        )
