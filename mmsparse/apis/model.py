"""Build the model or the runner of a config, and load weights."""

import copy
import importlib
import sys

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import RUNNERS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from mmsparse.apis.config import HOSTS, find_host
from mmsparse.checkpoint.coverage import HALF, diagnose
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.checkpoint.state_dict import Mismatch, load_state_dict, read_weights
from mmsparse.conversion.families import BACKBONE, recognize
from mmsparse.errors import UsageError, config_errors

CHECKED = 'mmsparse.CheckedRunner'


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, by default mmsparse's CheckedRunner.

    From now on mmengine reads checkpoints in this process without running their code.
    An invalid setting raises UsageError.
    """
    register_safe_loader()
    cfg = cfg.copy()
    cfg.setdefault('runner_type', CHECKED)
    with config_errors():
        return RUNNERS.build(cfg)


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a config of mmdet, mmseg or mmpretrain, with random weights.

    UsageError is raised if the config has no model or one of another library, or a
    setting of the model is invalid. It runs on any GPU, see
    :func:`~mmsparse.models.detectors.replace_operators`.
    """
    host = find_host(cfg)
    if host is None or 'model' not in cfg:
        raise UsageError(
            f'The config needs a model of {", ".join(HOSTS)}; got '
            f'default_scope={cfg.get("default_scope")!r} and {sorted(cfg)}'
        )
    models = importlib.import_module(f'{host}.registry').MODELS
    settings = cfg.model.copy()
    if 'data_preprocessor' in cfg:  # in configs of mmpretrain, as Runner does
        settings.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(host), config_errors():
        model = models.build(settings)
    if 'mmdet' in sys.modules:
        from mmsparse.models.detectors import replace_operators

        replace_operators(model)
    return model


def load_model(cfg: Config, checkpoint: str, device: str = 'cpu') -> BaseModel:
    """Build the model of a config, load its weights, and set it to eval mode.

    A segmentor predicts whole images, not windows. For errors, see
    :func:`build_model` and :func:`load_weights`.
    """
    model = build_model(cfg)
    load_weights(model, checkpoint)
    if hasattr(model, 'test_cfg') and (model.test_cfg or {}).get('mode') == 'slide':
        model.test_cfg.mode = 'whole'
    return model.to(device).eval()


def load_weights(
    model: nn.Module, checkpoint: str, allow_unexpected: bool = False
) -> None:
    """Load the weights of a file of torch or safetensors, which must fit the model.

    UsageError names a file that cannot be read, has official weights or those of a
    part of a model, or lists missing and unexpected keys (unless allowed) and those of
    another size.
    """
    state = read_weights(checkpoint)
    state = {name.removeprefix('module.'): x for name, x in state.items()}
    if mismatch := load_state_dict(model, state, allow_unexpected):
        raise _mismatch_error(model, state, str(checkpoint), mismatch)


def _mismatch_error(
    model: nn.Module, weights: dict[str, Tensor], file: str, mismatch: Mismatch
) -> UsageError:
    names = list(model.state_dict())
    text = f'checkpoint: {file} does not fit the configuration'
    if len(mismatch.missing) < HALF * len(names):
        return UsageError(f'{text}; {mismatch}')
    whole = diagnose(weights, names, recognize)
    parts = [name.removeprefix(BACKBONE) for name in names if name.startswith(BACKBONE)]
    backbone = diagnose(weights, parts, recognize).prefix
    reason = str(mismatch)
    if whole.prefix:
        reason = f'its keys have the prefix {whole.prefix!r}; remove it from them'
    elif backbone not in (None, BACKBONE):
        reason = (
            f'it has weights of the backbone alone, under the prefix {backbone!r}; '
            f'train the model, from these by model.backbone.init_cfg'
        )
    return whole.error(text, file, reason)
